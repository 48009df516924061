#include "experiments/pattern_drawing.h"

#include <png.h>

#include <sstream>

#include "core/file.h"
#include "experiments/pattern_options.h"
#include "experiments/png.h"
#include "tests/ops/sparse_attention/random_patterns.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {
namespace {

PatternOptions parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"patterns", "draw"});
  return parse_pattern_options(arguments);
}

/// A drawing, and the pattern whose predicate it should show.
struct Drawn {
  AttentionPattern attention;
  int64_t n_heads = 1;
  PatternDrawing drawing;

  /// What should be drawn, from the predicate of every layer and head.
  Cell expected(int64_t i, int64_t j) const {
    bool attended = false;
    for (const LayerPattern& layer : attention.layers)
      for (int64_t h = 0; h < n_heads; ++h) attended = attended || attends(layer.for_head(h), i, j);
    if (i == j) return attended ? kSelf : kSelfUnattended;
    if (!attended) return j > i ? kLater : kUnattended;
    size_t f = 0;
    while (!drawing.factors.at(f)(i, j)) ++f;
    return static_cast<Cell>(kFactor + f);
  }

  /// Calls fn(grid, row, column, cell) for every cell of the picture's panel.
  template <class Fn>
  void for_each_cell(const PictureLayout::Panel& panel, const Fn& fn) const {
    for (int64_t r = 0; r < panel.image.rows; ++r)
      for (int64_t c = 0; c < panel.image.columns; ++c) {
        const int64_t j = r * drawing.columns + c;
        fn(panel.image, r, c, j < drawing.n ? expected(drawing.query, j) : kLater);
      }
    for (int64_t i = 0; i < drawing.n; ++i)
      for (int64_t j = 0; j < drawing.n; ++j) fn(panel.matrix, i, j, expected(i, j));
  }
};

Drawn drawn(const AttentionPattern& attention, int64_t n_heads, int64_t n, int64_t columns, int64_t query) {
  const HeadsShown shown{{0, static_cast<int64_t>(attention.layers.size())}, {0, n_heads}};
  return {attention, n_heads, {to_string(attention), factors_of(attention, shown), n, columns, query}};
}

/// One or two side by side: random layers with patterns merged or split, and sizes with and without lines between
/// cells.
std::vector<Drawn> random_drawings() {
  std::vector<Drawn> all;
  for (int count = *rc::gen::inRange(1, 3); count > 0; --count) {
    AttentionPattern attention;
    for (int layers = *rc::gen::inRange(1, 4); layers > 0; --layers) {
      const Pattern a = random_pattern(12, 1), b = random_pattern(12, 1);
      attention.layers.push_back(*rc::gen::arbitrary<bool>() ? LayerPattern{{{a, b}}} : LayerPattern{{{a}, {b}}});
    }
    const int64_t n_heads = *rc::gen::inRange<int64_t>(1, 3);
    const int64_t n = *rc::gen::element<int64_t>(1, 2, 7, 36, 53, 110);
    all.push_back(drawn(attention, n_heads, n, *rc::gen::inRange<int64_t>(1, n + 1), *rc::gen::inRange<int64_t>(0, n)));
  }
  return all;
}

std::vector<PatternDrawing> drawings_of(const std::vector<Drawn>& all) {
  std::vector<PatternDrawing> drawings;
  for (const Drawn& one : all) drawings.push_back(one.drawing);
  return drawings;
}

TEST_CASE("patterns draw: every pixel of every cell is what the predicate says") {
  CHECK(rc::check("pixels", [] {
    const std::vector<Drawn> all = random_drawings();
    const PictureLayout layout = layout_of(drawings_of(all));
    const Image image = draw_pixels(drawings_of(all));
    RC_ASSERT(image.width == layout.width);
    RC_ASSERT(image.height == layout.height);
    for (size_t k = 0; k < all.size(); ++k)
      all[k].for_each_cell(layout.panels[k], [&](const CellGrid& grid, int64_t row, int64_t column, Cell cell) {
        for (int64_t y = 0; y < grid.cell; ++y)
          for (int64_t x = 0; x < grid.cell; ++x) {
            const int64_t at = (grid.top + row * grid.cell + y) * image.width + grid.left + column * grid.cell + x;
            const uint8_t* const rgb = image.rgb.data() + 3 * at;
            const bool line = std::max(x, y) >= grid.cell - grid.line();
            RC_ASSERT((Color{rgb[0], rgb[1], rgb[2]}) == color_of(line ? kLater : cell));
          }
      });
  }));
}

/// The cells of a group of an SVG file, as cells[row][column].
std::vector<std::vector<Cell>> cells_in_svg(const std::string& svg, const std::string& group, const CellGrid& grid) {
  std::vector<std::vector<Cell>> cells(static_cast<size_t>(grid.rows),
                                       std::vector<Cell>(static_cast<size_t>(grid.columns), kLater));
  const size_t begin = svg.find("<g id=\"" + group + "\""), end = svg.find("</g>", begin);
  REQUIRE(end != std::string::npos);
  std::istringstream lines(svg.substr(begin, end - begin));
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    int red = 0, green = 0, blue = 0, used = 0;
    REQUIRE(std::sscanf(line.c_str(), "<path fill=\"#%2x%2x%2x\" d=\"%n", &red, &green, &blue, &used) == 3);
    int kind = 0;
    while (!(color_of(static_cast<Cell>(kind)) ==
             Color{static_cast<uint8_t>(red), static_cast<uint8_t>(green), static_cast<uint8_t>(blue)}))
      ++kind;
    const char* at = line.c_str() + used;
    size_t column = 0, row = 0, length = 0, back = 0;
    for (; std::sscanf(at, "M%zu %zuh%zuv1h-%zuz%n", &column, &row, &length, &back, &used) == 4; at += used) {
      CHECK(length == back);
      for (size_t c = column; c < column + length; ++c) {
        CHECK(cells.at(row).at(c) == kLater);  // drawn once
        cells.at(row).at(c) = static_cast<Cell>(kind);
      }
    }
    CHECK(std::string(at) == "\"/>");
  }
  return cells;
}

TEST_CASE("patterns draw: an SVG has exactly the pairs of the predicate") {
  CHECK(rc::check("runs", [] {
    const std::vector<Drawn> all = random_drawings();
    const PictureLayout layout = layout_of(drawings_of(all));
    const std::string svg = draw_svg(drawings_of(all));
    for (size_t k = 0; k < all.size(); ++k) {
      const auto image = cells_in_svg(svg, concat("image-", k + 1), layout.panels[k].image);
      const auto matrix = cells_in_svg(svg, concat("matrix-", k + 1), layout.panels[k].matrix);
      all[k].for_each_cell(layout.panels[k], [&](const CellGrid& grid, int64_t row, int64_t column, Cell cell) {
        const auto& cells = &grid == &layout.panels[k].image ? image : matrix;
        RC_ASSERT(cells[static_cast<size_t>(row)][static_cast<size_t>(column)] == cell);
      });
    }
  }));
}

TEST_CASE("patterns draw: text, with and without colors") {
  const auto text_of = [](const char* pattern, Terminal out) {
    return draw_patterns(parse({pattern, "--n", "5", "--columns", "3", "--query", "3"}), out);
  };
  const char* const kPattern = "local(window=2), fixed_summary(stride=3, c=1)";
  CHECK(text_of(kPattern, {}) ==
        "local(window=2), fixed_summary(stride=3, c=1)\nn = 5; query 3 in rows of 3:\n\n"
        "····▓▓\n██\n\n"
        "██\n▓▓██\n··▓▓██\n····▓▓██\n····░░▓▓██\n\n"
        "▓▓ local(window=2)\n░░ fixed_summary(stride=3, c=1)\n");
  CHECK(contains(text_of("fixed_summary(stride=3, c=1)", {}), "\n╳╳\n··╳╳\n····██\n····▓▓╳╳\n"));
  const std::string colored = text_of(kPattern, {true, true, 80});
  CHECK(contains(colored, "\n\x1b[38;5;33m██\x1b[0m██\n"));
  CHECK(contains(colored, "\x1b[38;5;117m██\x1b[0m fixed_summary"));
}

TEST_CASE("patterns draw: heads, layers and presets") {
  const auto factors = [](std::vector<std::string> arguments) {
    std::string text;
    const PatternOptions options = parse(std::move(arguments));
    for (const Pattern& factor : options.drawings.at(0).factors) text += factor.text() + ";";
    return text;
  };
  const char* const kCycle = "local(window=3) | column(stride=4), dense";
  CHECK(factors({kCycle, "--n", "9"}) == "local(window=3);column(stride=4);dense;");
  CHECK(factors({kCycle, "--n", "9", "--layer", "2"}) == "dense;");
  CHECK(factors({kCycle, "--n", "9", "--layer", "1", "--head", "1"}) == "column(stride=4);");
  const PatternDrawing preset = parse({"--preset", "cifar10-59m-strided", "--out", "x.png"}).drawings.at(0);
  CHECK(preset.n == 3072);
  CHECK(preset.columns == 96);
  CHECK(parse({}).drawings.size() == 3);
  CHECK(parse({"dense", "local(window=2)", "--n", "1"}).drawings.size() == 2);
}

TEST_CASE("patterns draw: files") {
  const TemporaryFolder folder;
  const std::string png_path = (folder.path() / "p.png").string(), svg_path = (folder.path() / "p.svg").string();
  const PatternOptions options = parse({"--out", png_path, "--out", svg_path});
  CHECK(draw_patterns(options, {}) == "wrote " + png_path + "\nwrote " + svg_path + "\n");
  CHECK(read_file(svg_path) == draw_svg(options.drawings));

  const Image image = draw_pixels(options.drawings);
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  REQUIRE(png_image_begin_read_from_file(&png, png_path.c_str()));
  CHECK(png.width == image.width);
  CHECK(png.height == image.height);
  png.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(png));
  REQUIRE(png_image_finish_read(&png, nullptr, pixels.data(), 0, nullptr));
  CHECK(pixels == image.rgb);

  // The picture of the README: patterns draw --out docs/images/patterns.svg
  CHECK(read_file(LACUNA_SOURCE_DIR "/docs/images/patterns.svg") == draw_svg(options.drawings));

  const std::string nowhere = (folder.path() / "no such folder" / "p.png").string();
  expect_error(nowhere + ": cannot create: No such file", [&] { draw_patterns(parse({"--out", nowhere}), {}); });
  expect_error<UsageError>("the drawing is 72 columns wide, the terminal 71: give --out", [] {
    draw_patterns(parse({}), {true, false, 71});
  });
}

TEST_CASE("patterns draw: misuse is an error that says what to do") {
  const struct {
    std::vector<std::string> arguments;
    const char* message;
  } kBad[] = {
      {{"dense"}, "--n is missing"},
      {{"dense", "--n", "257"}, "--n must be at most 256, got 257: text shows up to 256 positions"},
      {{"dense", "--n", "1025", "--out", "a.png", "--out", "a.svg"}, "--n must be at most 1024, got 1025"},
      {{"dense", "--n", "4097", "--out", "a.png"}, "--n must be at most 4096, got 4097"},
      {{"dense", "--n", "9", "--out", "a.jpg"}, "--out must end in .png or .svg, got a.jpg"},
      {{"dense", "--n", "9", "--query", "9"}, "--query must be a whole number from 0 to 8"},
      {{"dense", "--n", "9", "--columns", "0"}, "--columns must be a whole number from 1 to 9"},
      {{"dense", "--n", "9", "--layer", "2"}, "--layer must be a whole number from 1 to 1"},
      {{"dense", "--preset", "laptop", "--n", "9"}, "not both"},
      {{"dens", "--n", "9"}, "did you mean 'dense'?"},
      {{"local(window=0)", "--n", "9"}, "window must be at least 1, got 0"},
      {{"local(window=1),local(window=2),local(window=3),local(window=4),local(window=5),local(window=6),dense", "--n",
        "9"},
       "a picture tells at most 6 patterns apart, got 7"},
      {{"--tiles", "2x2"}, "unknown flag --tiles"},
  };
  for (const auto& bad : kBad) expect_error<UsageError>(bad.message, [&] { parse(bad.arguments); });
}

}  // namespace
}  // namespace lacuna
