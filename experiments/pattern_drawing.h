#pragma once
// Pictures of patterns, after figure 3 of the paper: the positions as an image with one query and what it attends to,
// and the connectivity matrix, row i for query i. Every cell is an answer of the predicate itself.

#include <string>
#include <vector>

#include "experiments/stroke_font.h"
#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// A pattern to draw.
struct PatternDrawing {
  std::string title;
  std::vector<Pattern> factors;  // told apart by color; see factors_of
  int64_t n = 0;
  int64_t columns = 1;  // positions in a row of the image
  int64_t query = 0;    // the one that the image shows
};

/// The different patterns of the layers and heads from `first` to `last`, in order of first appearance.
struct HeadsShown {
  Range layers, heads;
};
std::vector<Pattern> factors_of(const AttentionPattern& attention, HeadsShown shown);

inline constexpr size_t kMostFactors = 6;  // that can be told apart
inline constexpr int64_t kMostDrawnInPng = 4096, kMostDrawnInSvg = 1024, kMostDrawnInText = 256;

/// What the cell of query i and position j shows: that j is later, that i does not attend to it, that j is i itself
/// (and whether i attends to it), or kFactor + k: factor k is the first that attends to it.
enum Cell : uint8_t { kLater, kUnattended, kSelf, kSelfUnattended, kFactor };
Cell cell_of(const PatternDrawing& drawing, int64_t i, int64_t j);

/// Where a matrix or image of cells lies in the picture, in pixels: cell (row, column) is the square of `cell` pixels
/// from (left + column * cell, top + row * cell) on. From 6 pixels on the last ones of a cell, to the right and below,
/// are a line between cells.
struct CellGrid {
  int64_t left = 0, top = 0, cell = 1, rows = 0, columns = 0;
  int64_t line() const { return cell < 6 ? 0 : 1 + cell / 16; }
};

/// The places of all parts of a picture. Drawings are side by side.
struct PictureLayout {
  struct Panel {
    CellGrid image, matrix;
    double center = 0.0;
    std::vector<std::string> title;  // lines
  };
  int64_t width = 0, height = 0;
  std::vector<Panel> panels;
};
PictureLayout layout_of(const std::vector<PatternDrawing>& drawings);

/// The color of a cell, for kLater that of the paper.
Color color_of(Cell cell);

/// The picture in pixels; as an SVG file, which has the cells of drawing k, in units of cells, in the groups "image-k"
/// and "matrix-k": in each a path of runs "M column row h length v1 h -length z" for every kind of cell but kLater; and
/// as text, two characters a cell, with colors for a terminal or without.
Image draw_pixels(const std::vector<PatternDrawing>& drawings);
std::string draw_svg(const std::vector<PatternDrawing>& drawings);
std::string draw_characters(const std::vector<PatternDrawing>& drawings, bool color);

}  // namespace lacuna
