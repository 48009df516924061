#include "ops/sparse_attention/decode.h"

#include <algorithm>

#include "core/dispatch.h"
#include "ops/sparse_attention/decode_kernels.h"
#include "ops/sparse_attention/rows_cpu.h"

namespace lacuna {
namespace {

using Store = DecodeCache::Store;

/// Rows for a part of a head whose queries lie below n.
Store store_of(const Part& part, int64_t n, int64_t first_row) {
  const Strip& keys = part.view.keys_of_group_0;  // no other group has more keys
  const int64_t used = part.keys_of(0, n - 1).end, reach = std::min({part.view.window, part.view.segment, n});
  const int64_t most = reach / keys.period * keys.width + std::min(reach % keys.period, keys.width);
  return {part, first_row, used, std::min(used, most)};
}

struct Layout {
  std::vector<std::vector<Store>> heads;
  int64_t rows = 0;  // of a sequence
};

Layout layout_of(const LayerPattern& pattern, int64_t n_heads, int64_t n) {
  Layout layout;
  for (int64_t h = 0; h < n_heads; ++h) {
    std::vector<Store>& stores = layout.heads.emplace_back();
    for (const Part& part : parts_of(pattern.for_head(h))) {
      stores.push_back(store_of(part, n, layout.rows));
      layout.rows += part.view.groups(n) * stores.back().capacity;
    }
  }
  return layout;
}

/// Calls fn(row) for every row of the store that position p is kept in: one for each group that has p among its keys.
template <class Fn>
void for_each_row_of(const Store& store, int64_t n, int64_t p, const Fn& fn) {
  for_each_group_of(store.part.view, p, n, [&](int64_t group) {
    const int64_t t = store.part.view.keys(group).rank(p);
    if (t < store.used) fn(store.first_row + group * store.capacity + t % store.capacity);
  });
}

/// Calls fn(row) for the row of every key of query i, once each and in the order of for_each_key.
template <class Fn>
void for_each_key_row(const std::vector<Store>& stores, int64_t i, const Fn& fn) {
  for (const Store& store : stores) {
    const View& view = store.part.view;
    const int64_t group = i % view.residues, first = store.first_row + group * store.capacity;
    const Strip keys = view.keys(group);
    const Range range = store.part.keys_of(group, i);
    if (range.empty()) continue;
    int64_t place = range.begin % store.capacity;
    for (int64_t t = range.begin; t < range.end; ++t) {
      if (!store.part.skips(i, keys.position(t))) fn(first + place);
      if (++place == store.capacity) place = 0;
    }
  }
}

}  // namespace

namespace cpu {

void advance(Stream, const Tensor& position) { ++position.data<int64_t>()[0]; }

void attention_decode(Stream, const TensorColumns& q, const Tensor& k_rows, const Tensor& v_rows,
                      const Tensor& position, int64_t, const DecodeStores& heads, const Tensor& o) {
  const int64_t i = position.data<int64_t>()[0];
  const auto n_heads = static_cast<int64_t>(heads.size());
  const int64_t batch = o.dim(0), rows = k_rows.dim(1), d_qk = k_rows.dim(2), d_v = v_rows.dim(2);
  int64_t keys = 0;  // of all heads
  for (const std::vector<Store>& stores : heads)
    for (const Store& store : stores) {
      const Range range = store.part.keys_of(i % store.part.view.residues, i);
      keys += range.end - range.begin;
    }
  constexpr int64_t kWorthThreads = int64_t{1} << 18;  // multiply-adds that take longer than waking threads
  const bool parallel = batch * keys * (d_qk + d_v) >= kWorthThreads;
  dispatch_f32_f64(q.dtype(), "DecodeCache", [&]<class T>() {
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t bh = 0; bh < batch * n_heads; ++bh) {
      const int64_t b = bh / n_heads, h = bh % n_heads;
      const T *k = k_rows.data<T>() + b * rows * d_qk, *v = v_rows.data<T>() + b * rows * d_v;
      const std::vector<Store>& stores = heads[static_cast<size_t>(h)];
      const int64_t query = i;  // clang 14 captures no variable from outside the parallel region in what follows
      attend_rows(
          [&](const auto& visit) {
            for_each_key_row(stores, query, [&](int64_t row) { visit(k + row * d_qk, v + row * d_v); });
          },
          q.data<T>() + b * q.row_distance() + h * d_qk, d_qk, d_v, o.data<T>() + bh * d_v);
    }
  });
}

void store_position(Stream, const TensorColumns& x, const Tensor& position, int64_t n, const DecodeStores& heads,
                    const Tensor& rows) {
  const auto n_heads = static_cast<int64_t>(heads.size());
  const int64_t p = position.data<int64_t>()[0], width = rows.dim(2);
  dispatch_f32_f64(x.dtype(), "DecodeCache", [&]<class T>() {
    for (int64_t b = 0; b < rows.dim(0); ++b)
      for (int64_t h = 0; h < n_heads; ++h)
        for (const Store& store : heads[static_cast<size_t>(h)])
          for_each_row_of(store, n, p, [&](int64_t row) {
            std::copy_n(x.data<T>() + b * x.row_distance() + h * width, width,
                        rows.data<T>() + (b * rows.dim(1) + row) * width);
          });
  });
}

}  // namespace cpu

void advance(const Tensor& position) { LACUNA_DISPATCH(position.device(), advance, position); }

DecodeCache::DecodeCache(const LayerPattern& pattern, int64_t n_heads, int64_t n_ctx, int64_t batch, int64_t d_qk,
                         int64_t d_v, DType dtype, Device device, const Tensor& position)
    : n_ctx_(n_ctx), d_qk_(d_qk), d_v_(d_v), counts_(!position.defined()) {
  for (const auto& [name, size] : {std::pair("n_heads", n_heads), std::pair("n_ctx", n_ctx), std::pair("batch", batch),
                                   std::pair("d_qk", d_qk), std::pair("d_v", d_v)})
    check(size >= 1, "DecodeCache: ", name, " must be at least 1, got ", size);
  check(dtype == DType::f32 || dtype == DType::f64, "DecodeCache: dtype must be f32 or f64, got ", dtype);
  check(device == kCpu || dtype == DType::f32, "DecodeCache: dtype must be f32 on a GPU, got ", dtype);
  validate(AttentionPattern{{pattern}}, n_heads);
  position_ = counts_ ? zeros({1}, DType::i64, device) : position;
  check(position_.dtype() == DType::i64 && position_.numel() == 1 && position_.device() == device,
        "DecodeCache: position must be i64 [1] on ", device);
  Layout layout = layout_of(pattern, n_heads, n_ctx);
  heads_ = std::move(layout.heads);
  k_ = empty({batch, layout.rows, d_qk}, dtype, device);
  v_ = empty({batch, layout.rows, d_v}, dtype, device);
}

void DecodeCache::append(const TensorColumns& k, const TensorColumns& v) {
  check(length_ < n_ctx_, "DecodeCache: made for ", n_ctx_, " positions, all taken");
  const auto n_heads = static_cast<int64_t>(heads_.size());
  check_rows("k", k, n_heads * d_qk_);
  check_rows("v", v, n_heads * d_v_);
  if (counts_ && length_ > 0) advance(position_);
  LACUNA_DISPATCH(k_.device(), store_position, k, position_, n_ctx_, heads_, k_);
  LACUNA_DISPATCH(v_.device(), store_position, v, position_, n_ctx_, heads_, v_);
  ++length_;
}

Tensor DecodeCache::attend(const TensorColumns& q) const {
  check(length_ > 0, "DecodeCache: append a position before attending from it");
  const auto n_heads = static_cast<int64_t>(heads_.size());
  check_rows("q", q, n_heads * d_qk_);
  const Tensor o = empty({k_.dim(0), n_heads * d_v_}, k_.dtype(), k_.device());
  LACUNA_DISPATCH(k_.device(), attention_decode, q, k_, v_, position_, n_ctx_, heads_, o);
  return o;
}

void DecodeCache::check_rows(const char* name, const TensorColumns& x, int64_t width) const {
  const Tensor& t = x.tensor;
  check(t.dtype() == k_.dtype(), "DecodeCache: ", name, " must be ", k_.dtype(), ", got ", t.dtype());
  check(t.device() == k_.device(), "DecodeCache: ", name, " must be on ", k_.device(), ", got ", t.device());
  const Shape needed{k_.dim(0), width}, shape = t.rank() == 2 ? Shape{t.dim(0), x.width} : t.shape();
  check(shape == needed, "DecodeCache: ", name, " must be ", needed, ", got ", shape);
}

int64_t DecodeCache::bytes() const { return (k_.numel() + v_.numel()) * size_of(k_.dtype()); }

int64_t DecodeCache::rows_of(const LayerPattern& pattern, int64_t n_heads, int64_t n_ctx) {
  return layout_of(pattern, n_heads, n_ctx).rows;
}

}  // namespace lacuna
