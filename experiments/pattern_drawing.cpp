#include "experiments/pattern_drawing.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr std::array<Color, kFactor> kColors{{{255, 255, 255}, {233, 238, 243}, {18, 43, 74}, {139, 151, 165}}};
constexpr std::array<Color, kMostFactors> kFactorColors{
    {{42, 127, 184}, {156, 203, 232}, {63, 163, 121}, {232, 170, 66}, {203, 93, 72}, {142, 112, 180}}};
constexpr Color kInk{18, 43, 74}, kFrame{205, 214, 223};

// Pixels.
constexpr int64_t kMargin = 30, kGap = 40, kPicture = 432;
constexpr double kTitleSize = 28.0, kTitleLine = 36.0, kLegendSize = 20.0, kLegendLine = 32.0;

/// Cells of one kind that follow each other in a row.
struct Run {
  int64_t row = 0, begin = 0, end = 0;
};

/// The cells of the image: the positions in order of reading, each as seen from the query.
Cell image_cell(const PatternDrawing& d, int64_t row, int64_t column) {
  const int64_t j = row * d.columns + column;
  return j < d.n ? cell_of(d, d.query, j) : kLater;
}

/// The runs of each kind of cell.
template <class CellAt>
std::vector<std::vector<Run>> runs_of(const CellGrid& grid, const CellAt& cell_at) {
  std::vector<std::vector<Run>> runs(kFactor + kMostFactors);
  for (int64_t row = 0; row < grid.rows; ++row)
    for (int64_t column = 0; column < grid.columns; ++column) {
      std::vector<Run>& of_kind = runs[cell_at(row, column)];
      if (!of_kind.empty() && of_kind.back().row == row && of_kind.back().end == column)
        of_kind.back().end = column + 1;
      else
        of_kind.push_back({row, column, column + 1});
    }
  runs[kLater].clear();  // bare paper
  return runs;
}

/// Words on lines no wider than `width`.
std::vector<std::string> wrapped(const std::string& text, double size, double width) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (!lines.empty() && text_width(lines.back() + " " + word, size) <= width)
      lines.back() += " " + word;
    else
      lines.push_back(word);
    begin = end + 1;
  }
  return lines;
}

/// What the colors mean; nothing where the title says it.
std::vector<std::string> legend_of(const PatternDrawing& drawing) {
  std::vector<std::string> legend;
  for (const Pattern& factor : drawing.factors) legend.push_back(factor.text());
  if (legend.size() == 1 && legend[0] == drawing.title) legend.clear();
  return legend;
}

std::string hex(Color c) { return fmt::format("#{:02x}{:02x}{:02x}", c.red, c.green, c.blue); }

class PixelCanvas {
 public:
  explicit PixelCanvas(const PictureLayout& layout) : image{layout.width, layout.height, {}} {
    image.rgb.assign(static_cast<size_t>(3 * image.width * image.height), 255);
  }
  void grid(std::string_view, const CellGrid& g, const std::vector<std::vector<Run>>& runs) {
    const int64_t width = g.columns * g.cell, height = g.rows * g.cell;
    const int64_t line = g.line();
    rectangle(g.left - line - 2, g.top - line - 2, width + line + 4, height + line + 4, kFrame);
    rectangle(g.left - line, g.top - line, width + line, height + line, color_of(kLater));
    for (size_t kind = 0; kind < runs.size(); ++kind)
      for (const Run& run : runs[kind])
        rectangle(g.left + run.begin * g.cell, g.top + run.row * g.cell, (run.end - run.begin) * g.cell, g.cell,
                  color_of(static_cast<Cell>(kind)));
    for (int64_t c = 1; c <= g.columns; ++c)
      rectangle(g.left + c * g.cell - line, g.top, line, height, color_of(kLater));
    for (int64_t r = 1; r <= g.rows; ++r) rectangle(g.left, g.top + r * g.cell - line, width, line, color_of(kLater));
  }
  void square(double x, double y, double side, Color color) {
    rectangle(std::lround(x), std::lround(y), std::lround(side), std::lround(side), color);
  }
  void text(double x, double y, double size, const std::string& words, bool centered) {
    draw_text(image, centered ? x - text_width(words, size) / 2 : x, y, size, words, kInk);
  }

  Image image;

 private:
  void rectangle(int64_t x, int64_t y, int64_t width, int64_t height, Color color) {
    for (int64_t row = y; row < y + height; ++row)
      for (int64_t column = x; column < x + width; ++column) {
        uint8_t* const rgb = image.rgb.data() + 3 * (row * image.width + column);
        rgb[0] = color.red;
        rgb[1] = color.green;
        rgb[2] = color.blue;
      }
  }
};

class SvgCanvas {
 public:
  explicit SvgCanvas(const PictureLayout& layout) {
    file = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
        "font-family=\"sans-serif\" fill=\"{2}\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
        layout.width, layout.height, hex(kInk));
  }
  void grid(std::string_view name, const CellGrid& g, const std::vector<std::vector<Run>>& runs) {
    const int64_t line = g.line();
    file += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#ffffff\" stroke=\"{}\" "
        "stroke-width=\"2\"/>\n",
        g.left - line - 1, g.top - line - 1, g.columns * g.cell + line + 2, g.rows * g.cell + line + 2, hex(kFrame));
    file += fmt::format("<g id=\"{}\" transform=\"translate({} {}) scale({})\" shape-rendering=\"crispEdges\">\n", name,
                        g.left, g.top, g.cell);
    for (size_t kind = 0; kind < runs.size(); ++kind) {
      if (runs[kind].empty()) continue;
      file += fmt::format("<path fill=\"{}\" d=\"", hex(color_of(static_cast<Cell>(kind))));
      for (const Run& run : runs[kind])
        file += fmt::format("M{} {}h{}v1h-{}z", run.begin, run.row, run.end - run.begin, run.end - run.begin);
      file += "\"/>\n";
    }
    file += "</g>\n";
    if (g.line() == 0) return;
    file += fmt::format("<path stroke=\"#ffffff\" stroke-width=\"{}\" d=\"", g.line());
    const double half = static_cast<double>(g.line()) / 2.0;
    for (int64_t c = 1; c <= g.columns; ++c)
      file += fmt::format("M{:g} {}v{}", static_cast<double>(g.left + c * g.cell) - half, g.top, g.rows * g.cell);
    for (int64_t r = 1; r <= g.rows; ++r)
      file += fmt::format("M{} {:g}h{}", g.left, static_cast<double>(g.top + r * g.cell) - half, g.columns * g.cell);
    file += "\"/>\n";
  }
  void square(double x, double y, double side, Color color) {
    file += fmt::format("<rect x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\" fill=\"{}\"/>\n", x, y, side, side,
                        hex(color));
  }
  void text(double x, double y, double size, const std::string& words, bool centered) {
    file += fmt::format("<text x=\"{:g}\" y=\"{:g}\" font-size=\"{:g}\"{}>{}</text>\n", x, y, 0.85 * size,
                        centered ? " text-anchor=\"middle\"" : "", words);
  }

  std::string file;
};

template <class Canvas>
void draw(const std::vector<PatternDrawing>& drawings, const PictureLayout& layout, Canvas& canvas) {
  for (size_t k = 0; k < drawings.size(); ++k) {
    const PatternDrawing& d = drawings[k];
    const PictureLayout::Panel& panel = layout.panels[k];
    double y = static_cast<double>(kMargin);
    for (const std::string& line : panel.title)
      canvas.text(panel.center, (y += kTitleLine) - 10, kTitleSize, line, true);
    canvas.grid(fmt::format("image-{}", k + 1), panel.image,
                runs_of(panel.image, [&](int64_t row, int64_t column) { return image_cell(d, row, column); }));
    canvas.grid(fmt::format("matrix-{}", k + 1), panel.matrix,
                runs_of(panel.matrix, [&](int64_t i, int64_t j) { return cell_of(d, i, j); }));
    y = static_cast<double>(panel.matrix.top + panel.matrix.rows * panel.matrix.cell + 10);
    const auto left = static_cast<double>(panel.matrix.left);
    const std::vector<std::string> legend = legend_of(d);
    for (size_t f = 0; f < legend.size(); ++f) {
      y += kLegendLine;
      canvas.square(left, y - 16, 16, color_of(static_cast<Cell>(kFactor + f)));
      canvas.text(left + 26, y - 2, kLegendSize, legend[f], false);
    }
  }
}

}  // namespace

std::vector<Pattern> factors_of(const AttentionPattern& attention, HeadsShown shown) {
  std::vector<Pattern> factors;
  for (int64_t layer = shown.layers.begin; layer < shown.layers.end; ++layer)
    for (int64_t head = shown.heads.begin; head < shown.heads.end; ++head)
      for (const Pattern& pattern : attention.for_layer(layer).for_head(head))
        if (std::find(factors.begin(), factors.end(), pattern) == factors.end()) factors.push_back(pattern);
  check_usage(factors.size() <= kMostFactors, "a picture tells at most ", kMostFactors, " patterns apart, got ",
              factors.size(), ": choose with --layer and --head");
  return factors;
}

Cell cell_of(const PatternDrawing& drawing, int64_t i, int64_t j) {
  for (size_t f = 0; f < drawing.factors.size(); ++f)
    if (drawing.factors[f](i, j)) return i == j ? kSelf : static_cast<Cell>(kFactor + f);
  return j > i ? kLater : i == j ? kSelfUnattended : kUnattended;
}

Color color_of(Cell cell) {
  return cell < kFactor ? kColors[cell] : kFactorColors.at(static_cast<size_t>(cell - kFactor));
}

PictureLayout layout_of(const std::vector<PatternDrawing>& drawings) {
  PictureLayout layout;
  int64_t left = kMargin, title_lines = 0, image_height = 0;
  for (const PatternDrawing& d : drawings) {
    PictureLayout::Panel& panel = layout.panels.emplace_back();
    panel.matrix = {0, 0, std::max<int64_t>(1, kPicture / d.n), d.n, d.n};
    panel.image = {0, 0, 1, (d.n + d.columns - 1) / d.columns, std::min(d.n, d.columns)};
    panel.image.cell = std::max<int64_t>(1, kPicture / 2 / std::max(panel.image.rows, panel.image.columns));
    int64_t width = std::max({panel.matrix.cell * d.n, panel.image.cell * panel.image.columns, kPicture});
    for (const std::string& line : legend_of(d))
      width = std::max(width, 26 + static_cast<int64_t>(text_width(line, kLegendSize)) + 1);
    panel.title = wrapped(d.title, kTitleSize, static_cast<double>(width));
    for (const std::string& line : panel.title)
      width = std::max(width, static_cast<int64_t>(text_width(line, kTitleSize)) + 1);
    panel.center = static_cast<double>(left) + static_cast<double>(width) / 2;
    panel.matrix.left = left + (width - panel.matrix.cell * d.n) / 2;
    panel.image.left = left + (width - panel.image.cell * panel.image.columns) / 2;
    left += width + kGap;
    title_lines = std::max(title_lines, static_cast<int64_t>(panel.title.size()));
    image_height = std::max(image_height, panel.image.cell * panel.image.rows);
  }
  layout.width = left - kGap + kMargin;
  for (size_t k = 0; k < drawings.size(); ++k) {
    CellGrid &image = layout.panels[k].image, &matrix = layout.panels[k].matrix;
    image.top = kMargin + static_cast<int64_t>(kTitleLine) * title_lines + 12;
    matrix.top = image.top + image_height + kGap;
    const auto legend = static_cast<int64_t>(legend_of(drawings[k]).size());
    layout.height = std::max(layout.height, matrix.top + matrix.cell * matrix.rows +
                                                static_cast<int64_t>(kLegendLine) * legend + 10 + kMargin);
  }
  return layout;
}

Image draw_pixels(const std::vector<PatternDrawing>& drawings) {
  const PictureLayout layout = layout_of(drawings);
  PixelCanvas canvas(layout);
  draw(drawings, layout, canvas);
  return std::move(canvas.image);
}

std::string draw_svg(const std::vector<PatternDrawing>& drawings) {
  const PictureLayout layout = layout_of(drawings);
  SvgCanvas canvas(layout);
  draw(drawings, layout, canvas);
  return canvas.file + "</svg>\n";
}

std::string draw_characters(const std::vector<PatternDrawing>& drawings, bool color) {
  // One character, shown twice; and a color of the 256 of terminals, none: that of text.
  struct Look {
    std::string_view plain, colored;
    int color = -1;
  };
  constexpr std::array<Look, kFactor + kMostFactors> kLooks{{{" ", " "},
                                                             {"·", "·", 244},
                                                             {"█", "█"},
                                                             {"╳", "╳"},
                                                             {"▓", "█", 33},
                                                             {"░", "█", 117},
                                                             {"▒", "█", 35},
                                                             {"▞", "█", 214},
                                                             {"▟", "█", 167},
                                                             {"▤", "█", 140}}};
  std::string text;
  const auto put = [&](Cell cell) {
    const Look& look = kLooks.at(cell);
    const std::string_view c = color ? look.colored : look.plain;
    text += color && look.color >= 0 ? fmt::format("\x1b[38;5;{}m{}{}\x1b[0m", look.color, c, c)
                                     : fmt::format("{}{}", c, c);
  };
  const auto end_row = [&text] {
    while (text.back() == ' ') text.pop_back();
    text += "\n";
  };
  for (const PatternDrawing& d : drawings) {
    text += fmt::format("{}{}\nn = {}; query {} in rows of {}:\n\n", text.empty() ? "" : "\n", d.title, d.n, d.query,
                        d.columns);
    for (int64_t row = 0; row * d.columns < d.n; ++row, end_row())
      for (int64_t column = 0; column < std::min(d.columns, d.n); ++column) put(image_cell(d, row, column));
    text += "\n";
    for (int64_t i = 0; i < d.n; ++i, end_row())
      for (int64_t j = 0; j < d.n; ++j) put(cell_of(d, i, j));
    text += "\n";
    for (size_t f = 0; f < d.factors.size(); ++f) {
      put(static_cast<Cell>(kFactor + f));
      text += fmt::format(" {}\n", d.factors[f].text());
    }
  }
  return text;
}

}  // namespace lacuna
