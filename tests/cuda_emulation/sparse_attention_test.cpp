// The attention kernels of a GPU, emulated or real, against dense attention under the mask in f64.

#include "ops/sparse_attention/sparse_attention.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#if !LACUNA_ON_GPU
#include "ops/sparse_attention/cuda/tiles.cuh"
#include "tests/cuda_emulation/runtime_emulated.h"
#endif
#include "ops/sparse_attention/cuda/launches.h"
#include "ops/sparse_attention/kernels.h"
#include "tests/cuda_emulation/sanitizers.h"
#include "tests/ops/sparse_attention/dense_masked.h"
#include "tests/ops/sparse_attention/random_patterns.h"

using namespace lacuna;
using namespace lacuna::test;

namespace {

// Sanitizers slow the emulator down by 8 (addresses) and 50 times (threads): they get a share of the cases. So do those
// of a GPU, by the environment.
const int kShare = std::getenv("LACUNA_TEST_SHARE") ? std::atoi(std::getenv("LACUNA_TEST_SHARE"))
                   : emulation::under_tsan()        ? 20
                   : emulation::under_asan()        ? 5
                                                    : 1;

const int kRandomCases = setenv("RC_PARAMS", concat("max_success=", 30 / kShare).c_str(), /*overwrite=*/0);

template <class T>
Tensor on_device(const std::vector<T>& x, const Shape& shape) {
  return to_device(from_vector(x, shape), kCuda);
}

/// The same, `first` elements behind where memory begins.
template <class T>
Tensor on_device(const std::vector<T>& x, const Shape& shape, int64_t first) {
  const Tensor y = empty({first + static_cast<int64_t>(x.size())}, dtype_of<T>, kCuda).view(first, shape);
  copy(from_vector(x, shape), y);
  return y;
}

/// With q, k and v side by side, as models have them.
template <class T>
Result<T> run_on_device(const Case& c) {
  const Inputs<T> in(c);
  const Shape shape{c.batch, c.n, c.n_heads * (2 * c.d_qk + c.d_v)}, shape_v{c.batch, c.n, c.n_heads * c.d_v};
  const Variable qkv(on_device(side_by_side(c, in.q, in.k, in.v), shape), true);
  const Variable o = sparse_attention(qkv, c.d_qk, c.pattern, c.n_heads);
  backward(o, on_device(in.d_o, shape_v));
  const auto [dq, dk, dv] = apart(c, to_vector<T>(qkv.grad()));
  return {to_vector<T>(o.value()), dq, dk, dv};
}

/// With each of them in a tensor of its own, `first` elements behind where memory begins.
template <class T>
Result<T> run_apart_on_device(const Case& c, int64_t first = 0) {
  const Inputs<T> in(c);
  const Shape shape_qk{c.batch, c.n, c.n_heads * c.d_qk}, shape_v{c.batch, c.n, c.n_heads * c.d_v};
  const Variable q(on_device(in.q, shape_qk, first), true), k(on_device(in.k, shape_qk, first), true),
      v(on_device(in.v, shape_v, first), true);
  const Variable o = sparse_attention(q, k, v, c.pattern, c.n_heads);
  backward(o, on_device(in.d_o, shape_v, first));
  return {to_vector<T>(o.value()), to_vector<T>(q.grad()), to_vector<T>(k.grad()), to_vector<T>(v.grad())};
}

/// How many launches write each number of o and dq, and of dk and dv, at most.
struct Passes {
  double queries = 1, keys = 1;
};
Passes passes_of(const Case& c) {
  Passes most;
  for (int64_t h = 0; h < c.n_heads; ++h) {
    const std::vector<Part> parts = parts_of(c.pattern.for_head(h));
    double runs = 1;
    for (size_t p = 1; p < parts.size(); ++p) runs += parts[p].view.residues != parts[p - 1].view.residues;
    most.queries = std::max(most.queries, runs);
    most.keys = std::max(most.keys, static_cast<double>(parts.size()));
  }
  return most;
}

/// f32 as on the CPU. Tensor cores take p and ds rounded to T, a launch that adds to an earlier one's result rounds
/// that once more, and ds has delta's error, which comes from an o that was rounded to T.
template <class T>
bool is_exact(const Case& c, const Result<T>& ours) {
  const double tolerance = 8 * 1.2e-7, rounding = sizeof(T) == 2 ? kRounding<T>.relative : 0;
  const Passes passes = passes_of(c);
  const double of_ds = 1 + (passes.queries + 1);
  const Exact exact = dense_masked<T>(c);
  return near(ours.o, exact.value.o, exact.size.o, tolerance + passes.queries * rounding) &&
         near(ours.dq, exact.value.dq, exact.size.dq, tolerance + (of_ds + passes.queries - 1) * rounding) &&
         near(ours.dk, exact.value.dk, exact.size.dk, tolerance + (of_ds + passes.keys - 1) * rounding) &&
         near(ours.dv, exact.value.dv, exact.size.dv, tolerance + passes.keys * rounding);
}
template <class T>
bool is_exact(const Case& c) {
  return is_exact(c, run_on_device<T>(c));
}

/// A pattern whose keys belong to several groups of queries: no built-in one is like that.
struct Shared {
  static constexpr std::string_view name = "shared_keys";
  static std::vector<Field<Shared>> fields() { return {}; }
  bool operator()(int64_t i, int64_t j) const { return j <= i && j >= i % 2 && (j - i % 2) % 3 < 2; }
  std::vector<View> views() const {
    View view;
    view.residues = 2;
    view.keys_of_group_0 = {0, 3, 2};
    return {view};
  }
  friend bool operator==(const Shared&, const Shared&) = default;
};

/// As many of the first cases as sanitizers have time for. The lists begin with one for every kernel and pair of widths
/// that is compiled.
std::vector<Case> some_of(std::vector<Case> cases, size_t under_tsan, size_t under_asan) {
  if (kShare > 1) cases.resize(kShare > 10 ? under_tsan : under_asan);
  return cases;
}

/// Patterns that fall apart into short columns, with rows across chunks and tiles: stacked and alone, of one length and
/// of two, the last one cut off, cut by windows and ends of keys.
std::vector<Case> column_cases() {
  return some_of(
      {{2, 149, 2, 64, 128, layer("column(stride=6)")},  // 25 and 24 rows, two to a tile
       {1, 220, 1, 24, 104, layer("longnet(w=81, r=3)")},
       // Segments that columns do not divide; a window that ends before the keys do, and rows without keys.
       {1, 130, 1, 64, 64, LayerPattern{{{AnyBand{.residues = 5, .period = 5, .segment = 52}}}}},
       {1, 100, 1, 16, 16, LayerPattern{{{AnyBand{.residues = 2, .period = 2, .window = 11, .key_end = 60}}}}},
       {1, 191, 2, 64, 64, layer("column(stride=2)")},   // 96 and 95
       {1, 70, 3, 8, 16, layer("column(stride=1000)")},  // 1, in two tiles
       {1, 300, 2, 64, 64, layer("fixed_block(stride=128) | column(stride=9)")},
       {2, 256, 1, 128, 128, layer("column(stride=2)")},  // 128
       {1, 110, 1, 32, 32, layer("local(window=30)")},
       {1, 120, 1, 40, 16, layer("global(n=50)")},
       {1, 128, 1, 64, 128, layer("dilated(window=5, dilation=2)")},
       {1, 160, 3, 16, 16,
        layer("column(stride=7) | fixed_block(stride=20) + column(stride=3) | fixed_summary(stride=16, c=3)")}},
      4, 7);
}

/// Windows whose backward is one march: within a tile of 128 rows and across, up to the longest, over several segments of
/// 4 tiles, dilated, cut by segments and ends of keys, in both ways of using shared memory.
std::vector<Case> sliding_cases() {
  return some_of(
      {{2, 129, 1, 32, 32, layer("dense")},  // one row more than a column has
       {1, 300, 2, 64, 128, layer("local(window=128) | local(window=17)")},
       {1, 385, 1, 64, 64, layer("local(window=129)")},
       {1, 700, 1, 40, 64, layer("local(window=1)")},  // two segments
       {1, 310, 1, 24, 104, layer("dilated(window=60, dilation=2)")},
       {1, 520, 1, 8, 16, layer("local(window=129)")},   // two segments, the second of 8 rows
       {1, 1300, 1, 16, 8, layer("local(window=100)")},  // three
       {1, 290, 1, 16, 16, layer("fixed_block(stride=129)")},
       {1, 300, 1, 16, 16, LayerPattern{{{AnyBand{.residues = 2, .period = 2, .window = 90, .key_end = 200}}}}},
       {1, 400, 1, 32, 24, LayerPattern{{{AnyBand{.window = 120, .segment = 250}}}}}},
      4, 6);
}

/// Every kind of pattern and composition, with n across tiles and chunks.
std::vector<Case> device_cases() {
  return some_of(
      {{2, 70, 2, 16, 16, LayerPattern{{{Shared{}}}}},
       {1, 130, 1, 64, 64, layer("dense")},
       {1, 201, 1, 104, 72, layer("fixed_block(stride=100) + fixed_summary(stride=100, c=7)")},
       {1, 170, 2, 56, 128, layer("fixed_summary(stride=8, c=2) | fixed_block(stride=70)")},
       {1, 230, 1, 32, 24, layer("dilated(window=20, dilation=7) + local(window=20) + global(n=9)")},
       {1, 90, 1, 5, 3, layer("fixed_block(stride=20) + global(n=18) + column(stride=3)")},
       {1, 50, 1, 136, 8, layer("local(window=9)")},
       {1, 5, 2, 8, 8, layer("fixed_block(stride=9) + fixed_summary(stride=9, c=2) | dense")},  // no summary yet
       {1, 250, 4, 24, 40, layer("fixed_block(stride=64) + fixed_summary(stride=64, c=8, sub_blocks=4)")},
       {1, 97, 3, 16, 8, layer("dense + local(window=5) + column(stride=3)")},
       {1, 190, 2, 8, 8, layer("longnet(w=64:600, r=1:2) + local(window=50) + global(n=70)")},
       {1, 1, 1, 8, 8, layer("dense")},
       {2, 65, 1, 16, 8, layer("dense")},
       {1, 137, 2, 128, 128, layer("local(window=33) | column(stride=17)")},
       {2, 150, 2, 64, 128, layer("column(stride=6) | local(window=20)")},
       {1, 200, 2, 32, 32, layer("local(window=25) + column(stride=25)")},
       {1, 150, 2, 8, 16, layer("column(stride=10) + fixed_summary(stride=30, c=4, sub_blocks=2)")},
       {1, 40, 1, 8, 8, layer("column(stride=1099511627776) + local(window=1099511627776)")},
       {1, 48, 1, 8, 8, layer("fixed_block(stride=47) + column(stride=2)")},
       {1, 140, 1, 8, 8, layer("global(n=90) + local(window=33)")},
       {1, 260, 1, 16, 16, layer("longnet(w=64:512, r=1:8)")},
       {1, 100, 1, 16, 16, LayerPattern{{{Local{10}, Shared{}}}}}},
      7, 12);
}

}  // namespace

TEST_CASE_TEMPLATE("sparse_attention on a GPU: equals dense attention under the mask", T, float, bf16, f16) {
  if (kShare > 10 && std::is_same_v<T, f16>) return;  // the kernels of bf16
  std::vector<Case> cases = device_cases();
  if (kShare > 10 && std::is_same_v<T, float>) cases.resize(1);
  for (const Case& c : cases) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CHECK(is_exact<T>(c));
  }
}

TEST_CASE_TEMPLATE("sparse_attention on a GPU: short columns equal dense attention under the mask", T, bf16, f16) {
  if (kShare > 1 && std::is_same_v<T, f16>) return;
  for (const Case& c : column_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CHECK(is_exact<T>(c));
  }
}

TEST_CASE_TEMPLATE("sparse_attention on a GPU: sliding windows equal dense attention under the mask", T, bf16, f16) {
  if (kShare > 1 && std::is_same_v<T, f16>) return;
  for (const Case& c : sliding_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CHECK(is_exact<T>(c));
  }
}

TEST_CASE_TEMPLATE("sparse_attention on a GPU: any pattern, any n", T, float, bf16, f16) {
  if (kShare > 10 && std::is_same_v<T, f16>) return;
  CHECK(rc::check([] {
    const int64_t n_heads = *rc::gen::inRange(1, 4), width = sizeof(T) == 2 ? 8 : 1;
    const Case c{*rc::gen::inRange(1, 3),
                 *rc::gen::inRange(1, kShare == 1 ? 201 : 101),
                 n_heads,
                 width * *rc::gen::inRange(1, 17),
                 width * *rc::gen::inRange(1, 17),
                 random_layer(90, n_heads)};
    RC_LOG() << to_string(AttentionPattern{{c.pattern}}) << " batch " << c.batch << " n " << c.n << " heads "
             << c.n_heads << " widths " << c.d_qk << ' ' << c.d_v;
    RC_ASSERT(is_exact<T>(c));
  }));
}

TEST_CASE("sparse_attention on a GPU: the same bits in every run, in any order of threads" *
          doctest::skip(kShare > 10)) {
  const Case c{1,  150,
               3,  32,
               64, layer("local(window=25) + column(stride=25) | fixed_summary(stride=16, c=3) | column(stride=4)")};
#if !LACUNA_ON_GPU
  const emulation::Schedule before = emulation::schedule();
#endif
  const Result<bf16> first = run_on_device<bf16>(c);
  for ([[maybe_unused]] const uint64_t seed : {11, 12}) {
#if !LACUNA_ON_GPU
    emulation::schedule() = {emulation::Schedule::Order::random, seed};
#endif
    const Result<bf16> again = run_on_device<bf16>(c);
    CHECK(same_bits(first, again));
  }
#if !LACUNA_ON_GPU
  emulation::schedule() = before;
#endif
}

#if !LACUNA_ON_GPU
TEST_CASE("sparse_attention on a GPU: those with less shared memory compute the same" * doctest::skip(kShare > 10)) {
  for (const auto& [major, minor] : {std::pair(8, 0), std::pair(8, 6)}) {
    const emulation::ComputeCapability other(major, minor);
    CAPTURE(minor);
    CHECK(is_exact<bf16>({1, 150, 1, 32, 32, layer("local(window=9)")}));
    CHECK(is_exact<bf16>({1, 300, 1, 64, 64, layer("local(window=129)")}));
    CHECK(is_exact<bf16>({1, 150, 1, 64, 128, layer("local(window=20)")}));
    CHECK(is_exact<bf16>({1, 256, 1, 128, 128, layer("column(stride=2)")}));
    CHECK(is_exact<bf16>({1, 130, 1, 128, 128, layer("dense")}));
  }
}

TEST_CASE("sparse_attention on a GPU: no two rows that ldmatrix reads at once share a bank" *
          doctest::skip(kShare > 10)) {
  const uint64_t before = emulation::counters().bank_conflicts, phases = emulation::counters().ldmatrix_phases;
  for (const auto& [d_qk, d_v] : {std::pair(32, 32), std::pair(64, 64), std::pair(64, 128), std::pair(128, 128)})
    for (const int64_t n : {100, 129, 130})  // one column, a sliding window, and tiles of 64 rows
      run_on_device<f16>({1, n, 1, d_qk, d_v, layer("dense")});
  CHECK(emulation::counters().ldmatrix_phases > phases);
  CHECK(emulation::counters().bank_conflicts == before);
}
#endif

TEST_CASE_TEMPLATE("sparse_attention on a GPU: q, k and v side by side give the same bits as apart", T, float, bf16) {
  if (kShare > 10 && std::is_same_v<T, float>) return;  // f32 has many blocks, whose warps share nothing
  // Rows, tiles with gradients to clear, columns, and a march.
  for (const char* pattern :
       {"fixed_summary(stride=16, c=2) + local(window=3)", "column(stride=8)", "local(window=9)"}) {
    const Case c{2, 70, 2, 8, 16, layer(pattern)};
    CHECK(same_bits(run_on_device<T>(c), run_apart_on_device<T>(c)));
  }
}

TEST_CASE_TEMPLATE("sparse_attention on a GPU: tensors at any address", T, float, bf16) {
  if (kShare > 10 && std::is_same_v<T, float>) return;
  for (const char* pattern : {"fixed_summary(stride=16, c=2)", "column(stride=8)", "local(window=9)"}) {
    const Case c{1, 40, 2, 8, 16, layer(pattern)};
    CHECK(is_exact(c, run_apart_on_device<T>(c, 1)));
  }
}

TEST_CASE("sparse_attention on a GPU: scores far apart give finite numbers") {
  for (const char* pattern : {"local(window=40) + column(stride=8)", "dense"}) {
    const Case c{1, 64, 1, 8, 8, layer(pattern)};
    Inputs<bf16> in(c);
    for (bf16& x : in.k) x = bf16(1e4f * x);
    const Shape shape{1, 64, 8};
    const Variable q(on_device(in.q, shape), true), k(on_device(in.k, shape), true), v(on_device(in.v, shape), true);
    const Variable o = sparse_attention(q, k, v, c.pattern, 1);
    backward(o, on_device(in.d_o, shape));
    for (const Tensor& t : {o.value(), q.grad(), k.grad(), v.grad()})
      for (const bf16 x : to_vector<bf16>(t)) CHECK(std::isfinite(static_cast<float>(x)));
  }
}

TEST_CASE("sparse_attention on a GPU: what it cannot compute is named") {
  const auto attend = [](DType dtype, int64_t width) {
    const Variable x(zeros({1, 2, width}, dtype, kCuda));
    sparse_attention(x, x, x, layer("dense"), 1);
  };
  CHECK_THROWS_WITH_AS(attend(DType::f64, 4), "sparse_attention: on a GPU dtype must be f32, bf16 or f16, got f64",
                       Error);
  CHECK_THROWS_WITH_AS(attend(DType::f32, 1500),
                       "sparse_attention: d_qk + d_v must be at most 2048 on a GPU, got 1500 + 1500", Error);
}

TEST_CASE("keys_of and queries_of of bands are those of the parts, each the other's transpose") {
  const auto bands_are_parts = [](const PatternUnion& patterns, int64_t n) {
    AttentionProblem problem{1, n, 1, 1, 1, {parts_of(patterns)}};
    const std::vector<Part>& parts = problem.heads[0];
    const gpu::BandTable table = gpu::passes_of(problem, gpu::Cut::head, 1).at(0).at(0);
    for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
      const View& view = parts[p].view;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t group = i % view.residues;
        const Range ours = gpu::keys_of(table.bands, p, group, i), theirs = parts[p].keys_of(group, i);
        if (ours.begin != theirs.begin || ours.end != theirs.end) return false;
        for (int64_t t = 0; t < view.keys(group).rank(n); ++t) {
          const int64_t j = view.keys(group).position(t);
          const Range queries = gpu::queries_of(table.bands, p, j, n);
          if ((queries.begin <= i && i < queries.end) != (ours.begin <= t && t < ours.end)) return false;
          if (j <= i && gpu::skips(table.bands, p, i, j) != parts[p].skips(i, j)) return false;
        }
      }
      Range last;
      for (int64_t j = 0; j < n; ++j) {
        const Range queries = gpu::queries_of(table.bands, p, j, n);
        if (queries.begin < last.begin || queries.end < last.end) return false;
        last = queries;
      }
    }
    return true;
  };
  for (const Case& c : device_cases()) CHECK(bands_are_parts(c.pattern.for_head(0), c.n));
  CHECK(rc::check([&] { RC_ASSERT(bands_are_parts(random_union(40, 1), *rc::gen::inRange(1, 100))); }));
}

TEST_CASE("columns_of: where patterns fall apart into short columns") {
  struct Expected {
    const char* pattern;
    int64_t n;
    int rows, per_tile;  // 0: they do not
  };
  for (const Expected& e : std::vector<Expected>{{"column(stride=128)", 3072, 24, 2},
                                                 {"column(stride=128)", 12288, 96, 1},
                                                 {"column(stride=128)", 16384, 128, 1},
                                                 {"column(stride=128)", 16385, 0, 0},
                                                 {"column(stride=9)", 10, 2, 9},  // no more than there are
                                                 {"column(stride=1099511627776)", 100, 1, 64},
                                                 {"fixed_block(stride=128)", 12288, 128, 1},
                                                 {"fixed_block(stride=129)", 12288, 0, 0},
                                                 {"longnet(w=256, r=2)", 12288, 128, 1},
                                                 {"longnet(w=256:512, r=2:4)", 12288, 0, 0},
                                                 {"local(window=64)", 129, 0, 0},
                                                 {"dense", 128, 128, 1},
                                                 {"fixed_summary(stride=8, c=2)", 64, 0, 0},
                                                 {"column(stride=8) + local(window=8)", 64, 0, 0}}) {
    CAPTURE(e.pattern);
    const auto columns = gpu::columns_of(parts_of(layer(e.pattern).heads[0]), e.n, gpu::kMaxColumnRows);
    REQUIRE(columns.has_value() == (e.rows > 0));
    if (!columns) continue;
    CHECK(columns->rows_of_column == e.rows);
    CHECK(columns->per_tile == e.per_tile);
  }
  CHECK(!gpu::columns_of(parts_of({Column{2}}), 192, 80));  // too many for the memory of a block
}

TEST_CASE("Columns: the rows of tiles are the queries, each with its keys") {
  const auto tiles_are_the_pattern = [](const PatternUnion& patterns, int64_t n) {
    const auto columns = gpu::columns_of(parts_of(patterns), n, gpu::kMaxColumnRows);
    if (!columns) return true;
    const int rows = (columns->tile_rows() + 15) / 16 * 16;
    std::vector<int> times(static_cast<size_t>(n));
    for (int64_t tile = 0; tile < columns->tiles(); ++tile) {
      std::vector<gpu::ColumnRow> all;
      for (int r = 0; r < rows; ++r) all.push_back(columns->row(tile, r));
      for (int r = 0; r < rows; ++r) {
        const gpu::ColumnRow& row = all[r];
        if (r > 0 && (row.begin < all[r - 1].begin || row.end < all[r - 1].end)) return false;
        if (row.begin < 0 || row.end > r + 1 || row.begin > row.end) return false;
        if (row.position < 0 && row.begin < row.end) return false;
        if (row.position < 0) continue;
        ++times.at(static_cast<size_t>(row.position));
        std::vector<bool> met(static_cast<size_t>(n));
        for (int key = row.begin; key < row.end; ++key) met.at(static_cast<size_t>(all[key].position)) = true;
        for (int64_t j = 0; j < n; ++j)
          if (met[static_cast<size_t>(j)] != attends(patterns, row.position, j)) return false;
      }
    }
    return std::all_of(times.begin(), times.end(), [](int count) { return count == 1; });
  };
  for (const Case& c : column_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CHECK(tiles_are_the_pattern(c.pattern.for_head(0), c.n));
  }
  CHECK(rc::check([&] {
    AnyBand band = random_band(40);
    band.from = band.width = 1;
    band.period = band.residues;
    RC_ASSERT(tiles_are_the_pattern({band}, *rc::gen::inRange(1, 150)));
  }));
}

TEST_CASE("take_columns: takes the heads that fall apart into short columns, alike ones together") {
  AttentionProblem problem{1, 100, 4, 8, 8, {}};
  for (const char* pattern : {"column(stride=3)", "column(stride=3) + local(window=2)", "dense", "column(stride=3)"})
    problem.heads.push_back(parts_of(layer(pattern).heads[0]));
  const std::vector<gpu::ColumnTable> tables = gpu::take_columns(problem, gpu::kMaxColumnRows);
  REQUIRE(tables.size() == 2);
  CHECK(tables[0].columns.rows_of_column == 34);
  REQUIRE(tables[0].n_heads == 2);
  CHECK((tables[0].heads[0] == 0 && tables[0].heads[1] == 3));
  REQUIRE(tables[1].n_heads == 1);
  CHECK(tables[1].heads[0] == 2);
  CHECK(
      (problem.heads[0].empty() && !problem.heads[1].empty() && problem.heads[2].empty() && problem.heads[3].empty()));

  AttentionProblem many{1, 100, 70, 8, 8, std::vector<std::vector<Part>>(70, parts_of({Column{3}}))};
  CHECK(gpu::take_columns(many, gpu::kMaxColumnRows).size() == 2);  // 64 heads fit into one launch
}

TEST_CASE("take_sliding: takes the heads whose windows reach few rows back, alike ones together") {
  struct Expected {
    const char* pattern;
    int64_t n;
    bool taken;
  };
  for (const Expected& e : std::vector<Expected>{{"local(window=129)", 1000, true},
                                                 {"local(window=130)", 1000, false},
                                                 {"dilated(window=129, dilation=3)", 1000, true},
                                                 {"dilated(window=130, dilation=3)", 1000, false},
                                                 {"fixed_block(stride=129)", 1000, true},
                                                 {"fixed_block(stride=130)", 1000, false},
                                                 {"dense", 129, true},
                                                 {"dense", 130, false},
                                                 {"column(stride=8)", 1032, true},
                                                 {"column(stride=8)", 1033, false},
                                                 {"local(window=8) + global(n=2)", 1000, false},
                                                 {"fixed_summary(stride=8, c=2)", 64, false}}) {
    CAPTURE(e.pattern);
    AttentionProblem problem{1, e.n, 2, 8, 8, {2, parts_of(layer(e.pattern).heads[0])}};
    const std::vector<gpu::SlidingTable> tables = gpu::take_sliding(problem);
    REQUIRE(tables.size() == (e.taken ? 1 : 0));
    CHECK(problem.heads[1].empty() == e.taken);
    if (e.taken) CHECK((tables[0].n_heads == 2 && tables[0].heads[0] == 0 && tables[0].heads[1] == 1));
  }
}

#if !LACUNA_ON_GPU
TEST_CASE("sparse_attention on a GPU: positions of a strip without divisions") {
  CHECK(rc::check("StripPositions", [] {
    constexpr int64_t kEnd = int64_t{1} << 31;
    const int64_t width =
        *rc::gen::oneOf(rc::gen::inRange<int64_t>(1, 300), rc::gen::inRange<int64_t>(1, kEnd),
                        rc::gen::element<int64_t>(kEnd / 2 - 1, kEnd / 2, kEnd / 2 + 1, kEnd - 1, kEnd, kUnbounded));
    const int64_t period = width < kEnd ? *rc::gen::inRange(width, kEnd) : width;
    const Strip strip{*rc::gen::inRange<int64_t>(0, 1000), period, width};
    const gpu::StripPositions positions(strip);
    const int64_t run = *rc::gen::inRange<int64_t>(0, kEnd) / width * width;  // begins there
    for (const int64_t t : {run, run - 1, run + width / 2, kEnd - 1})
      if (0 <= t && t < kEnd) RC_ASSERT(positions(uint32_t(t)) == uint32_t(strip.position(t)));
  }));
}

TEST_CASE("sparse_attention on a GPU: forward and backward of short columns and of sliding windows are one launch each") {
  const auto launches = [](int64_t n, int64_t d_qk, const char* pattern) {
    const uint64_t before = emulation::counters().launches;
    run_on_device<bf16>({1, n, 1, d_qk, 16, layer(pattern)});
    return emulation::counters().launches - before;
  };
  CHECK(launches(128, 16, "dense") == 2);
  CHECK(launches(140, 16, "local(window=129)") == 2);
  CHECK(launches(140, 16, "local(window=130)") == 3);  // backward by queries and by keys
  CHECK(launches(140, 72, "local(window=9)") == 3);    // too wide
}
#endif
