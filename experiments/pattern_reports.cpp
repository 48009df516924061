// What `patterns` prints.

#include <algorithm>

#include <fmt/format.h>

#include "core/error.h"
#include "core/file.h"
#include "experiments/parse.h"
#include "experiments/pattern_options.h"
#include "experiments/png.h"

namespace lacuna {
namespace {

std::string layer_title(const std::vector<LayerHeads>& cycle, size_t layer, const HeadGroup& group, int64_t n_heads) {
  std::string heads;
  for (const int64_t h : group.heads) heads += fmt::format("{}{}", heads.empty() ? "" : ",", h);
  const bool all = static_cast<int64_t>(group.heads.size()) == n_heads;
  return fmt::format("layer {} of {}{}: {}\n", layer + 1, cycle.size(), all ? "" : ", head " + heads,
                     to_string({{{{group.patterns}}}}));
}

std::string heading(const PatternOptions& options) {
  return fmt::format("{}\nn = {}, {} {}\n", to_string(options.attention), format_count(options.n), options.n_heads,
                     options.n_heads == 1 ? "head" : "heads");
}

/// One decimal, with commas.
std::string mean(int64_t sum, int64_t count) {
  const int64_t tenths = (10 * sum + count / 2) / count;
  return fmt::format("{}.{}", format_count(tenths / 10), tenths % 10);
}

class Report {
 public:
  void line(std::string_view mark, std::string_view claim, std::string_view words) {
    text += fmt::format("  {:<5} {:<10} {}\n", mark, claim, words);
  }
  void add(std::string_view claim, const Finding& finding, std::string_view holds) {
    violations += !finding.holds();
    incomplete += finding.holds() && !finding.complete;
    if (finding.violation)
      line("FAIL", claim, *finding.violation);
    else
      line(finding.complete ? "ok" : "(ok)", claim, fmt::format("{}: {}", holds, finding.evidence));
  }
  /// A claim that a flag makes a mere fact.
  void violated(std::string_view claim, bool allowed, std::string_view words) {
    violations += !allowed;
    line(allowed ? "note" : "FAIL", claim, words);
  }

  std::string text;
  int64_t violations = 0, incomplete = 0;
};

std::string runs_in_words(const std::vector<Range>& runs) {
  constexpr size_t kMost = 8;
  std::string text;
  int64_t rows = 0;
  for (size_t r = 0; r < runs.size(); ++r) {
    rows += runs[r].end - runs[r].begin;
    if (r < kMost) text += fmt::format("{}{}-{}", r > 0 ? ", " : "", runs[r].begin, runs[r].end - 1);
  }
  if (runs.size() > kMost) text += fmt::format(" and {} more runs", runs.size() - kMost);
  return fmt::format("{} rows have no key: {}", format_count(rows), text);
}

void check_group(const HeadGroup& group, const PatternOptions& options, Report& report) {
  for (const Pattern& pattern : group.patterns) {
    const Finding views = check_views(pattern.views());
    if (!views.holds()) return report.add("views", views, "");
    report.add("predicate", check_predicate(pattern, options.n, options.all_pairs_limit),
               fmt::format("{} looks at no later key, and is its views", pattern.text()));
  }
  const std::vector<Part> parts = parts_of(group.patterns);
  const RowStatistics rows = row_statistics(parts, options.n);
  report.add("schedule", check_parts(group.patterns, parts, options.n, options.all_pairs_limit),
             fmt::format("{} {} {}{} pairs, none twice", parts.size(), parts.size() == 1 ? "part has" : "parts have",
                         rows.exact ? "exactly the " : "about ", format_count(rows.pairs)));
  report.add("backward", check_backward(group.patterns, parts, options.n, options.all_pairs_limit),
             "from keys to queries it meets the same pairs once");
  const std::string keys =
      fmt::format("{} keys a query, {} at most", mean(rows.pairs, options.n), format_count(rows.most));
  if (rows.empty.empty())
    report.line("ok", "rows", keys + "; none is empty");
  else
    report.violated("rows", options.allow_empty, runs_in_words(rows.empty) + "; " + keys);
  std::string tiles;
  for (const TileSize& size : options.tiles)
    tiles += fmt::format("{}{:.2f} in tiles of {}x{}", tiles.empty() ? "" : ", ",
                         static_cast<double>(count_tiles(parts, options.n, size) * size.queries * size.keys) /
                             static_cast<double>(std::max<int64_t>(1, rows.pairs)),
                         size.queries, size.keys);
  report.line("", "computed", "pairs for a useful one: " + tiles);
}

void check_reach(const std::vector<LayerHeads>& cycle, const PatternOptions& options, Report& report) {
  const bool by_pairs = options.n <= options.all_pairs_limit;
  const Reach reach =
      by_pairs ? reach_by_pairs(cycle, options.n, options.layers) : reach_by_views(cycle, options.n, options.layers);
  const auto layers = [](int64_t count) {
    return fmt::format("{} {}", format_count(count), count == 1 ? "layer" : "layers");
  };
  if (reach.never)
    return report.violated(
        "reach", options.allow_unreachable,
        fmt::format("query {} never reaches key {}, through any number of layers", reach.never->i, reach.never->j));
  const bool all = reach.followed == reach.sources;
  const std::string partly =
      all ? "" : fmt::format("; at least: followed {} of {} positions", reach.followed, reach.sources);
  if (reach.missing)
    return report.violated(
        "reach", options.allow_unreachable,
        fmt::format("query {} does not reach key {} through {}; all pairs take {}{}", reach.missing->i,
                    reach.missing->j, layers(options.layers), layers(reach.layers.value_or(0)), partly));
  report.incomplete += !all;
  report.line(
      all ? "ok" : "(ok)", "reach",
      fmt::format("every position reaches all before it through {}{}", layers(reach.layers.value_or(0)), partly));
}

std::string flop(double count) {
  return count < 1e9    ? fmt::format("{:.1f} MFLOP", count / 1e6)
         : count < 1e12 ? fmt::format("{:.2f} GFLOP", count / 1e9)
                        : fmt::format("{:.2f} TFLOP", count / 1e12);
}

}  // namespace

std::string check_report(const PatternOptions& options, int64_t& violations) {
  std::vector<LayerHeads> cycle = head_groups(options.attention, options.n_heads);
  Report report;
  report.text = heading(options);
  for (size_t layer = 0; layer < cycle.size(); ++layer) {
    if (options.head)
      std::erase_if(cycle[layer], [&](const HeadGroup& group) {
        return std::find(group.heads.begin(), group.heads.end(), *options.head) == group.heads.end();
      });
    for (const HeadGroup& group : cycle[layer]) {
      report.text += layer_title(cycle, layer, group, options.n_heads);
      check_group(group, options, report);
    }
  }
  report.text += options.head ? fmt::format("head {} alone\n", *options.head) : "all layers and heads\n";
  check_reach(cycle, options, report);
  report.text += report.violations == 1  ? "1 claim is violated\n"
                 : report.violations > 1 ? fmt::format("{} claims are violated\n", report.violations)
                 : report.incomplete > 0 ? "nothing is violated; (ok): looked at a part only, so this is no proof\n"
                 : options.n <= options.all_pairs_limit ? "proved\n"
                                                        : "proved, for predicates that repeat as their views do\n";
  violations += report.violations;
  return report.text;
}

std::string cost_report(const PatternOptions& options) {
  const std::vector<LayerHeads> cycle = head_groups(options.attention, options.n_heads);
  const int64_t n = options.n, element = size_of(options.dtype), width = options.d_qk + options.d_v;
  const auto dense = static_cast<double>(n) * static_cast<double>(n + 1) / 2;
  std::string text = heading(options) + fmt::format("one sequence, heads of {} (q, k) and {} (v), {}\n", options.d_qk,
                                                    options.d_v, name_of(options.dtype));
  double mean_keys = 0;  // over heads and layers
  for (size_t layer = 0; layer < cycle.size(); ++layer)
    for (const HeadGroup& group : cycle[layer]) {
      const std::vector<Part> parts = parts_of(group.patterns);
      const RowStatistics rows = row_statistics(parts, n);
      const auto heads = static_cast<int64_t>(group.heads.size());
      const double pairs = static_cast<double>(rows.pairs) * static_cast<double>(heads);
      mean_keys += pairs / static_cast<double>(n * options.n_heads) / static_cast<double>(cycle.size());
      text += layer_title(cycle, layer, group, options.n_heads);
      text +=
          fmt::format("  keys per query   {}{} mean, {} most, {:.1f} % of dense\n", rows.exact ? "" : "about ",
                      mean(rows.pairs, n), format_count(rows.most), 100.0 * static_cast<double>(rows.pairs) / dense);
      text += fmt::format("  forward          {}: two products, 2 (d_qk + d_v) a pair\n",
                          flop(2.0 * static_cast<double>(width) * pairs));
      text += fmt::format("  backward         {}: five products, 2 (3 d_qk + 2 d_v) a pair\n",
                          flop(2.0 * static_cast<double>(3 * options.d_qk + 2 * options.d_v) * pairs));
      text += fmt::format("  q, k, v, o       {}\n", format_bytes(2 * n * heads * width * element));
      text += "  tile        tiles     computed pairs  computed/useful  k and v read by tiles\n";
      for (const TileSize& size : options.tiles) {
        const int64_t tiles = count_tiles(parts, n, size);
        text += fmt::format("  {:<9} {:>9} {:>16} {:>14.2f}   {:>12}\n", fmt::format("{}x{}", size.queries, size.keys),
                            format_count(tiles), format_count(tiles * size.queries * size.keys),
                            static_cast<double>(tiles * size.queries * size.keys) /
                                static_cast<double>(std::max<int64_t>(1, rows.pairs)),
                            format_bytes(tiles * size.keys * width * element));
      }
    }
  return text + fmt::format("mean over layers and heads: {:.1f} keys per query\n", mean_keys);
}

std::string draw_patterns(const PatternOptions& options, const Terminal& out) {
  if (options.out.empty()) {
    const int64_t columns = 2 * options.drawings.front().n;
    check_usage(!out.is_terminal || columns <= out.columns, "the drawing is ", columns, " columns wide, the terminal ",
                out.columns, ": give --out FILE.png, or a smaller --n");
    return draw_characters(options.drawings, out.color);
  }
  std::string text;
  for (const std::filesystem::path& path : options.out) {
    if (path.extension() == ".svg") {
      write_file(path, draw_svg(options.drawings));
    } else {
      const Image image = draw_pixels(options.drawings);
      write_file(path, encode_png(image.rgb, image.width, image.height));
    }
    text += fmt::format("wrote {}\n", path.string());
  }
  return text;
}

}  // namespace lacuna
