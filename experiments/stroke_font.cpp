#include "experiments/stroke_font.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace lacuna {
namespace {

// The strokes of each letter, each a run of points xy: x from 0 to 4; y from 0 to 9, where 2 is the line it stands on.
const std::map<char, std::string_view> kStrokes{
    {'a', "4642 4536160503123243"},
    {'b', "0802 0516364543321203"},
    {'c', "4536160503123243"},
    {'d', "4842 4536160503123243"},
    {'e', "04444536160503123243"},
    {'f', "38281712 0636"},
    {'g', "4641301001 4536160503123243"},
    {'h', "0802 0516364542"},
    {'i', "2622 2828"},
    {'j', "26211000 2828"},
    {'k', "0802 360432"},
    {'l', "2822"},
    {'m', "0602 05162522 25364542"},
    {'n', "0602 0516364542"},
    {'o', "120305163645433212"},
    {'p', "0600 0516364543321203"},
    {'q', "4640 4536160503123243"},
    {'r', "0602 041636"},
    {'s', "45361605143443321203"},
    {'t', "18132232 0636"},
    {'u', "0603123243 4642"},
    {'v', "062246"},
    {'w', "0612253246"},
    {'x', "0642 0246"},
    {'y', "0622 4610"},
    {'z', "06460242"},
    {'0', "120307183847433212"},
    {'1', "172822 1232"},
    {'2', "07183847460242"},
    {'3', "07183847463515 354443321203"},
    {'4', "32380444"},
    {'5', "480805354443321203"},
    {'6', "473818070312324344351504"},
    {'7', "084812"},
    {'8', "15060718384746351504031232434435"},
    {'9', "031232434738180706153546"},
    {'_', "0141"},
    {'(', "39272331"},
    {')', "19272311"},
    {'=', "0545 0343"},
    {'+', "0444 2622"},
    {'-', "0444"},
    {'|', "2921"},
    {',', "2311"},
    {':', "2525 2323"},
    {'.', "2222"},
};
constexpr std::string_view kBox = "0208484202";
constexpr double kSpace = 2.5, kBetween = 1.8, kHalfStroke = 0.42, kLine = 2.0, kHeight = 9.0;

struct Point {
  double x = 0.0, y = 0.0;
};

struct Segment {
  Point a, b;
  double distance(Point p) const {
    const Point ab{b.x - a.x, b.y - a.y}, ap{p.x - a.x, p.y - a.y};
    const double squared = ab.x * ab.x + ab.y * ab.y;
    const double t = squared > 0.0 ? std::clamp((ap.x * ab.x + ap.y * ab.y) / squared, 0.0, 1.0) : 0.0;
    return std::hypot(ap.x - t * ab.x, ap.y - t * ab.y);
  }
};

/// The strokes of a text whose line is y = 0, in units of the table; returns how wide it is.
double strokes_of(std::string_view text, std::vector<Segment>& segments) {
  double width = 0.0;
  for (const char c : text) {
    if (c == ' ') {
      width += kSpace;
      continue;
    }
    const auto found = kStrokes.find(c);
    const std::string_view strokes = found == kStrokes.end() ? kBox : found->second;
    double left = 4.0, right = 0.0;
    for (size_t s = 0; s < strokes.size(); s += strokes[s] == ' ' ? 1 : 2) {
      if (strokes[s] == ' ') continue;
      left = std::min(left, static_cast<double>(strokes[s] - '0'));
      right = std::max(right, static_cast<double>(strokes[s] - '0'));
    }
    const auto point = [&](size_t s) {
      return Point{width + strokes[s] - '0' - left + kHalfStroke, strokes[s + 1] - '0' - kLine};
    };
    for (size_t s = 0; s + 3 < strokes.size(); s += 2) {
      if (strokes[s + 2] == ' ')
        s += 1;
      else
        segments.push_back({point(s), point(s + 2)});
    }
    width += right - left + kBetween;
  }
  return std::max(0.0, width - kBetween + 2 * kHalfStroke);
}

}  // namespace

double text_width(std::string_view text, double size) {
  std::vector<Segment> ignored;
  return strokes_of(text, ignored) * size / kHeight;
}

void draw_text(Image& image, double x, double y, double size, std::string_view text, Color color) {
  const double unit = size / kHeight;
  std::vector<Segment> segments;
  strokes_of(text, segments);
  for (Segment& s : segments) s = {{x + unit * s.a.x, y - unit * s.a.y}, {x + unit * s.b.x, y - unit * s.b.y}};
  const double reach = unit * kHalfStroke + 0.5;
  std::map<int64_t, double> nearest;  // pixel: distance to the middle of the strokes
  for (const Segment& s : segments) {
    const auto [left, right] = std::minmax(s.a.x, s.b.x);
    const auto [top, bottom] = std::minmax(s.a.y, s.b.y);
    const auto first_row = std::max<int64_t>(0, static_cast<int64_t>(std::floor(top - reach)));
    const auto first_column = std::max<int64_t>(0, static_cast<int64_t>(std::floor(left - reach)));
    for (int64_t row = first_row; row < image.height && static_cast<double>(row) < bottom + reach; ++row)
      for (int64_t column = first_column; column < image.width && static_cast<double>(column) < right + reach;
           ++column) {
        const double distance = s.distance({static_cast<double>(column) + 0.5, static_cast<double>(row) + 0.5});
        const auto [at, is_new] = nearest.try_emplace(row * image.width + column, distance);
        if (!is_new) at->second = std::min(at->second, distance);
      }
  }
  for (const auto& [pixel, distance] : nearest) {
    const double ink = std::clamp(reach - distance, 0.0, 1.0);
    uint8_t* const rgb = image.rgb.data() + 3 * pixel;
    const auto mix = [ink](uint8_t paper, uint8_t pen) {
      return static_cast<uint8_t>(std::lround(paper + ink * (pen - paper)));
    };
    rgb[0] = mix(rgb[0], color.red);
    rgb[1] = mix(rgb[1], color.green);
    rgb[2] = mix(rgb[2], color.blue);
  }
}

}  // namespace lacuna
