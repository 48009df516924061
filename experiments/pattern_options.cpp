#include "experiments/pattern_options.h"

#include <algorithm>

#include <CLI/CLI.hpp>

#include "core/error.h"
#include "experiments/environment.h"
#include "experiments/flag_errors.h"
#include "experiments/parse.h"
#include "experiments/presets.h"

namespace lacuna {
namespace {

constexpr int64_t kMostPositions = int64_t{1} << 31;

constexpr const char* kHelp =
    "patterns: which positions attend to which, proved, counted and drawn\n\n"
    "Usage: patterns <command> [PATTERN] [flags]\n\n"
    "Commands\n"
    "  check   prove that a pattern is causal, has no empty row, reaches everything, and is what kernels compute\n"
    "  cost    keys per query, arithmetic, bytes and tiles\n"
    "  draw    pictures: PNG, SVG or text; without a pattern figure 3 of the paper\n"
    "\nA pattern is written as in configurations: + merges, | splits heads, a comma interleaves layers.\n"
    "\nExamples\n"
    "  patterns check \"local(window=128), column(stride=128)\" --n 12288\n"
    "  patterns check --preset enwik8-95m-fixed\n"
    "  patterns cost \"fixed_block(stride=128) + fixed_summary(stride=128, c=32)\" --n 12288 --tiles 32x32,128x128\n"
    "  patterns draw --out figure3.svg\n"
    "  patterns draw \"local(window=8) + global(n=2)\" --n 64\n"
    "\npatterns <command> --help lists the flags of a command.\n"
    "Exit codes: 0 done, nothing violated; 1 a claim is violated; 2 misuse.\n";

/// The preset `name`, or program/name.
const Preset& preset_of(const std::string& name) {
  const size_t slash = name.find('/');
  std::vector<std::string> names;
  const Preset* found = nullptr;
  for (const Preset& preset : all_presets()) {
    const std::string full = preset.config.program + "/" + preset.config.preset;
    names.push_back(slash == std::string::npos ? preset.config.preset : full);
    if (names.back() != name) continue;
    check_usage(!found, "--preset ", name, " is one of several programs: write ", full, " or another program");
    found = &preset;
  }
  check_usage(found, "--preset: there is no ", name, suggestion(name, names));
  return *found;
}

/// The least number of heads that the pattern can be split over.
int64_t least_heads(const AttentionPattern& attention) {
  for (int64_t heads = 1; heads <= 4096; ++heads) {
    try {
      validate(attention, heads);
      return heads;
    } catch (const UsageError&) {
    }
  }
  throw UsageError("give --heads: no number up to 4096 suits the pattern");
}

/// As many layers as the pattern has factors: its cycle, or the patterns of one of its layers.
int64_t factors_of(const AttentionPattern& attention) {
  size_t most = attention.layers.size();
  for (const LayerPattern& layer : attention.layers) {
    most = std::max(most, layer.heads.size());
    for (const PatternUnion& head : layer.heads) most = std::max(most, head.size());
  }
  return static_cast<int64_t>(most);
}

std::vector<TileSize> parse_tiles(const std::string& text) {
  std::vector<TileSize> tiles;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string tile = text.substr(begin, end - begin);
    const size_t x = tile.find('x');
    check_usage(x != std::string::npos, "--tiles must be sizes as 32x32,128x64 (queries by keys), got \"", text, "\"");
    tiles.push_back({parse_integer("--tiles, queries", tile.substr(0, x), 1, 1 << 20),
                     parse_integer("--tiles, keys", tile.substr(x + 1), 1, 1 << 20)});
    begin = end + 1;
  }
  return tiles;
}

struct RawFlags {
  std::vector<std::string> drawn, out;
  std::string query, columns, layer;
  std::string pattern, preset, n, heads, tiles = "16x16,32x32,64x64,128x128", layers, head, by = "auto", d_qk, d_v,
                                         dtype;
};

void read_pattern(const RawFlags& raw, PatternOptions& o) {
  check_usage(raw.pattern.empty() || raw.preset.empty(), "give a pattern or --preset, not both");
  check_usage(!raw.pattern.empty() || !raw.preset.empty(),
              "a pattern is missing, as in \"local(window=128), column(stride=128)\", or --preset");
  if (raw.preset.empty()) {
    o.attention = parse_attention(raw.pattern);
    o.n_heads = raw.heads.empty() ? least_heads(o.attention) : parse_integer("--heads", raw.heads, 1, 4096);
    o.layers = factors_of(o.attention);
    check_usage(!raw.n.empty(), "--n is missing: the number of positions, as in --n 3072");
  } else {
    const ModelConfig& model = preset_of(raw.preset).config.model;
    o.attention = model.attention;
    o.n = model.n_ctx;
    o.n_heads = raw.heads.empty() ? model.n_heads : parse_integer("--heads", raw.heads, 1, 4096);
    o.layers = model.n_layers;
    o.d_qk = model.qk_width() / model.n_heads;
    o.d_v = model.d_model / model.n_heads;
  }
  validate(o.attention, o.n_heads);
  if (!raw.n.empty()) o.n = parse_integer("--n", raw.n, 1, kMostPositions);
  if (!raw.layers.empty()) o.layers = parse_integer("--layers", raw.layers, 1, kMostPositions);
  if (!raw.head.empty()) o.head = parse_integer("--head", raw.head, 0, o.n_heads - 1);
  o.tiles = parse_tiles(raw.tiles);
  if (!raw.d_qk.empty()) o.d_qk = parse_integer("--d-qk", raw.d_qk, 1, 1 << 20);
  if (!raw.d_v.empty()) o.d_v = parse_integer("--d-v", raw.d_v, 1, 1 << 20);
  if (!raw.dtype.empty()) o.dtype = parse_dtype(raw.dtype);
  check_usage(raw.by == "auto" || raw.by == "pairs" || raw.by == "views", "--by must be auto, pairs or views, got \"",
              raw.by, "\"", suggestion(raw.by, {"auto", "pairs", "views"}));
  if (raw.by == "views") o.all_pairs_limit = 0;
  if (raw.by == "pairs") {
    check_usage(o.n <= 16'384, "--by pairs takes n^2 memory and is for at most 16384 positions, got ", o.n);
    o.all_pairs_limit = o.n;
  }
}

/// The files of `draw`. Returns how many positions all of them can show.
int64_t read_files(const std::vector<std::string>& names, PatternOptions& o) {
  int64_t most = names.empty() ? kMostDrawnInText : kMostDrawnInPng;
  for (const std::string& name : names) {
    const std::filesystem::path& path = o.out.emplace_back(name);
    check_usage(path.extension() == ".png" || path.extension() == ".svg", "--out must end in .png or .svg, got ", name);
    if (path.extension() == ".svg") most = std::min(most, kMostDrawnInSvg);
  }
  return most;
}

void read_drawings(const RawFlags& raw, PatternOptions& o) {
  check_usage(raw.drawn.empty() || raw.preset.empty(), "give patterns or --preset, not both");
  const ModelConfig* const model = raw.preset.empty() ? nullptr : &preset_of(raw.preset).config.model;
  check_usage(raw.drawn.empty() || !raw.n.empty(), "--n is missing: the number of positions, as in --n 64");
  PatternDrawing common;
  common.n = !raw.n.empty() ? parse_integer("--n", raw.n, 1, kMostPositions) : model ? model->n_ctx : 36;
  const int64_t most = read_files(raw.out, o);
  check_usage(common.n <= most, "--n must be at most ", most, ", got ", common.n, ": text shows up to ",
              kMostDrawnInText, " positions, SVG ", kMostDrawnInSvg, ", PNG ", kMostDrawnInPng);
  while (common.columns * common.columns < common.n) ++common.columns;
  if (model && model->position_extents.size() > 1) common.columns = model->n_ctx / model->position_extents[0];
  if (!raw.columns.empty()) common.columns = parse_integer("--columns", raw.columns, 1, common.n);
  common.query = std::max<int64_t>(0, 3 * common.n / 4 - 1);
  if (!raw.query.empty()) common.query = parse_integer("--query", raw.query, 0, common.n - 1);

  const auto draw = [&](std::string title, const AttentionPattern& attention, int64_t heads) {
    validate(attention, heads);
    HeadsShown shown{{0, static_cast<int64_t>(attention.layers.size())}, {0, heads}};
    if (!raw.layer.empty()) {
      shown.layers.begin = parse_integer("--layer", raw.layer, 1, shown.layers.end) - 1;
      shown.layers.end = shown.layers.begin + 1;
    }
    if (!raw.head.empty()) {
      shown.heads.begin = parse_integer("--head", raw.head, 0, heads - 1);
      shown.heads.end = shown.heads.begin + 1;
    }
    PatternDrawing& drawing = o.drawings.emplace_back(common);
    drawing.title = std::move(title);
    drawing.factors = factors_of(attention, shown);
  };
  const auto draw_text = [&](std::string title, const std::string& text) {
    const AttentionPattern attention = parse_attention(text);
    draw(title.empty() ? to_string(attention) : std::move(title), attention,
         raw.heads.empty() ? least_heads(attention) : parse_integer("--heads", raw.heads, 1, 4096));
  };
  for (const std::string& text : raw.drawn) draw_text("", text);
  if (model) {
    draw(to_string(model->attention), model->attention,
         raw.heads.empty() ? model->n_heads : parse_integer("--heads", raw.heads, 1, 4096));
  } else if (raw.drawn.empty()) {  // figure 3: the stride is a row of the image
    const int64_t stride = common.columns;
    draw_text("dense", "dense");
    draw_text("strided", concat("local(window=", stride, "), column(stride=", stride, ")"));
    draw_text("fixed", concat("fixed_block(stride=", stride, "), fixed_summary(stride=", stride, ", c=1)"));
  }
}

}  // namespace

PatternOptions parse_pattern_options(const std::vector<std::string>& arguments) {
  PatternOptions o;
  check_usage(arguments.size() >= 2, "a command is missing: check, cost or draw; `patterns --help` explains them");
  const std::string& command = arguments[1];
  if (command == "--help" || command == "-h" || command == "help") {
    o.help = kHelp;
    return o;
  }
  if (command == "--version") {
    o.help = version() + "\n";
    return o;
  }
  const std::vector<std::string> commands{"check", "cost", "draw"};
  const auto found = std::find(commands.begin(), commands.end(), command);
  check_usage(found != commands.end(), "unknown command ", command, suggestion(command, commands),
              "; the commands are check, cost and draw");
  o.command = static_cast<PatternCommand>(found - commands.begin());

  RawFlags raw;
  CLI::App app;
  app.name("patterns " + command);
  app.set_help_flag("-h,--help", "this text");
  app.allow_extras();
  if (o.command == PatternCommand::draw)
    app.add_option("patterns", raw.drawn, "each as a configuration writes it; drawn side by side");
  else
    app.add_option("pattern", raw.pattern, "as a configuration writes it");
  app.add_option("--preset", raw.preset, "pattern, n, heads and layers of a preset: its name, or program/name");
  app.add_option("--n", raw.n, "positions in a sequence");
  app.add_option("--heads", raw.heads, "attention heads; default: as few as the pattern can be split over");
  if (o.command != PatternCommand::draw)
    app.add_option("--tiles", raw.tiles, "tile sizes, queries by keys")->capture_default_str();
  if (o.command == PatternCommand::check) {
    app.description("Proves claims about a pattern; prints the first place where one does not hold.");
    app.add_option(
        "--layers", raw.layers,
        "layers through which every position should reach all before it; default: those of the preset, or as "
        "many as the pattern has factors (its cycle, or the patterns of one layer)");
    app.add_option("--head", raw.head, "look at one head alone");
    app.add_option("--by", raw.by, "pairs (all of them), views (their algebra), auto (pairs up to n = 2048)");
    app.add_flag("--allow-empty", o.allow_empty, "rows without keys are no violation");
    app.add_flag("--allow-unreachable", o.allow_unreachable, "positions that are not reached are no violation");
  } else if (o.command == PatternCommand::draw) {
    app.description(
        "Draws what one query attends to, the positions being an image, and the connectivity matrix, row i for query "
        "i. "
        "Each cell has the color of the first pattern that attends to it. Without a pattern: dense, strided and fixed "
        "attention on a 6x6 image, figure 3 of the paper.");
    app.add_option("--out", raw.out,
                   "a file to write, .png or .svg; may be repeated; default: text on standard output");
    app.add_option("--columns", raw.columns,
                   "positions in a row of the image; default: the preset's, or the root of n");
    app.add_option("--query", raw.query, "the query of the image, counted from 0; default: three quarters down");
    app.add_option("--layer", raw.layer, "one layer of the cycle alone, counted from 1");
    app.add_option("--head", raw.head, "one head alone, counted from 0");
  } else {
    app.description("What a pattern costs, for one sequence.");
    app.add_option("--d-qk", raw.d_qk, "width of queries and keys of a head; default 64, or the preset's");
    app.add_option("--d-v", raw.d_v, "width of values of a head; default 64, or the preset's");
    app.add_option("--dtype", raw.dtype, "of q, k, v and o; default f32");
  }
  std::vector<std::string> rest(arguments.rbegin(), arguments.rend() - 2);  // CLI11 takes them last first
  try {
    app.parse(rest);
  } catch (const CLI::CallForHelp&) {
    o.command = PatternCommand::help;
    o.help = app.help();
    return o;
  } catch (const CLI::ParseError& error) {
    throw UsageError(explain(error, app));
  }
  for (const std::string& extra : app.remaining()) {
    std::vector<std::string> flags;
    for (const CLI::Option* option : app.get_options())
      for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
    throw UsageError(concat(extra.starts_with("-") ? "unknown flag " : "unexpected argument ", extra,
                            suggestion(extra.substr(0, extra.find('=')), flags), "; `patterns ", command,
                            " --help` lists the flags"));
  }
  if (o.command == PatternCommand::draw)
    read_drawings(raw, o);
  else
    read_pattern(raw, o);
  return o;
}

}  // namespace lacuna
