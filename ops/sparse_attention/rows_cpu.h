#pragma once
// Attention one query at a time over exactly the keys of its pattern: the plain form of the equations. It is the f64
// path, against which the tiled kernels are tested, and the one row that decoding needs.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/sparse_attention/parts.h"

namespace lacuna::cpu {

template <class T>
T dot(const T* a, const T* b, int64_t count) {
  constexpr int64_t kLanes = 16;  // independent sums, for the compiler to vectorize
  T sums[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[c + lane] * b[c + lane];
  T sum = 0;
  for (; c < count; ++c) sum += a[c] * b[c];
  for (const T s : sums) sum += s;
  return sum;
}

/// y += a * x
template <class T>
void axpy(T a, const T* x, T* y, int64_t count) {
  for (int64_t c = 0; c < count; ++c) y[c] += a * x[c];
}

/// One query: o = sum_j softmax_j(s_j) v_j with s_j = q . k_j / sqrt(d_qk), over its keys and values:
/// for_each_row(visit) calls visit(k_j, v_j) for each. Returns log sum_j exp(s_j): -inf, with o = 0, for a query
/// without keys.
template <class T, class ForEachRow>
T attend_rows(const ForEachRow& for_each_row, const T* q, int64_t d_qk, int64_t d_v, T* o) {
  const T scale = 1 / std::sqrt(static_cast<T>(d_qk));
  T largest = -std::numeric_limits<T>::infinity(), sum = 0;
  for (int64_t c = 0; c < d_v; ++c) o[c] = 0;
  for_each_row([&](const T* k_j, const T* v_j) {
    const T s = scale * dot(q, k_j, d_qk);
    if (s > largest) {  // what was summed so far was relative to a smaller score
      const T shrink = std::exp(largest - s);
      for (int64_t c = 0; c < d_v; ++c) o[c] *= shrink;
      sum *= shrink;
      largest = s;
    }
    const T p = std::exp(s - largest);
    sum += p;
    axpy(p, v_j, o, d_v);
  });
  if (largest == -std::numeric_limits<T>::infinity() && sum == 0) return largest;
  for (int64_t c = 0; c < d_v; ++c) o[c] /= sum;
  return largest + std::log(sum);
}

/// Row i of a head. `k` and `v` are its row 0; rows are `row_qk` and `row_v` elements apart.
template <class T>
T attend_row(const std::vector<Part>& parts, int64_t i, const T* q, const T* k, int64_t row_qk, int64_t d_qk,
             const T* v, int64_t row_v, int64_t d_v, T* o) {
  return attend_rows(
      [&](const auto& visit) { for_each_key(parts, i, [&](int64_t j) { visit(k + j * row_qk, v + j * row_v); }); }, q,
      d_qk, d_v, o);
}

}  // namespace lacuna::cpu
