#pragma once
// Dense attention under the mask of pattern.h in f64, against which every device's attention is tested.

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/sparse_attention/pattern.h"

namespace lacuna::test {

struct Case {
  int64_t batch, n, n_heads, d_qk, d_v;
  LayerPattern pattern;
};

template <class T>
std::vector<T> random_numbers(int64_t count, uint64_t seed) {
  const Rng rng(seed, RandomPurpose::test);
  std::vector<T> x(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) x[static_cast<size_t>(i)] = static_cast<T>(static_cast<float>(rng.normal({}, i)));
  return x;
}

/// Output and gradients; the loss is the output contracted with d_o. lse [batch, n_heads, n], of the exact answer
/// alone.
template <class T>
struct Result {
  std::vector<T> o, dq, dk, dv, lse = {};
};

template <class T>
struct Inputs {
  std::vector<T> q, k, v, d_o;  // the same f32 numbers, rounded to T

  explicit Inputs(const Case& c)
      : q(random_numbers<T>(c.batch * c.n * c.n_heads * c.d_qk, 1)),
        k(random_numbers<T>(c.batch * c.n * c.n_heads * c.d_qk, 2)),
        v(random_numbers<T>(c.batch * c.n * c.n_heads * c.d_v, 3)),
        d_o(random_numbers<T>(c.batch * c.n * c.n_heads * c.d_v, 4)) {}
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
template <class T>
bool same_bits(const Result<T>& a, const Result<T>& b) {
  return same_bits(a.o, b.o) && same_bits(a.dq, b.dq) && same_bits(a.dk, b.dk) && same_bits(a.dv, b.dv);
}

/// q, k and v of every token side by side, as one product makes them, and apart again.
template <class T>
std::vector<T> side_by_side(const Case& c, const std::vector<T>& q, const std::vector<T>& k, const std::vector<T>& v) {
  const int64_t row_qk = c.n_heads * c.d_qk, row_v = c.n_heads * c.d_v;
  std::vector<T> qkv;
  for (int64_t t = 0; t < c.batch * c.n; ++t)
    for (const auto& [x, row] : {std::pair(&q, row_qk), std::pair(&k, row_qk), std::pair(&v, row_v)})
      qkv.insert(qkv.end(), x->begin() + t * row, x->begin() + (t + 1) * row);
  return qkv;
}
template <class T>
std::array<std::vector<T>, 3> apart(const Case& c, const std::vector<T>& qkv) {
  const std::array<int64_t, 3> rows{c.n_heads * c.d_qk, c.n_heads * c.d_qk, c.n_heads * c.d_v};
  std::array<std::vector<T>, 3> x;
  for (auto at = qkv.begin(); at != qkv.end();)
    for (size_t i = 0; i < x.size(); at += rows[i++]) x[i].insert(x[i].end(), at, at + rows[i]);
  return x;
}

template <class T>
std::vector<double> widened(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

/// The f64 answer, and for each number the size of what was summed for it, by which rounding errors are judged.
struct Exact {
  Result<double> value, size;
};

/// Dense attention under the mask of pattern.h, pair by pair from the equations, of inputs rounded to T.
template <class T>
Exact dense_masked(const Case& c, bool gradients = true) {
  Inputs<double> in(c);
  const Inputs<T> rounded(c);
  in.q = widened(rounded.q), in.k = widened(rounded.k), in.v = widened(rounded.v), in.d_o = widened(rounded.d_o);
  const Result<double> zero{std::vector<double>(in.v.size()), std::vector<double>(in.q.size()),
                            std::vector<double>(in.k.size()), std::vector<double>(in.v.size())};
  Exact r{zero, zero};
  const double scale = 1 / std::sqrt(static_cast<double>(c.d_qk));
  std::vector<double> p(static_cast<size_t>(c.n)), dp(p), score_size(p), dp_size(p);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.n_heads; ++h) {
      const PatternUnion patterns = c.pattern.for_head(h);
      const auto qk = [&](int64_t i) { return ((b * c.n + i) * c.n_heads + h) * c.d_qk; };
      const auto vo = [&](int64_t i) { return ((b * c.n + i) * c.n_heads + h) * c.d_v; };
      for (int64_t i = 0; i < c.n; ++i) {
        double top = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0, delta_size = 0;
        for (int64_t j = 0; j < c.n; ++j) {
          p[j] = -std::numeric_limits<double>::infinity();
          if (!attends(patterns, i, j)) continue;
          p[j] = score_size[j] = 0;
          for (int64_t d = 0; d < c.d_qk; ++d) {
            const double term = scale * in.q[qk(i) + d] * in.k[qk(j) + d];
            p[j] += term;
            score_size[j] += std::abs(term);
          }
          p[j] += std::log(static_cast<double>(multiplicity(patterns, i, j)));  // exp(score) counts that often
          top = std::max(top, p[j]);
        }
        r.value.lse.push_back(top);
        r.size.lse.push_back(0);
        if (std::isinf(top)) continue;  // no keys
        for (int64_t j = 0; j < c.n; ++j) sum += p[j] = std::exp(p[j] - top);
        const double lse = r.value.lse.back() = top + std::log(sum);
        for (int64_t j = 0; j < c.n; ++j) {
          p[j] /= sum;
          if (p[j] == 0) continue;
          score_size[j] += std::abs(lse);  // the weight is exp(score - lse)
          r.size.lse.back() += p[j] * (1 + score_size[j]);
          for (int64_t d = 0; d < c.d_v; ++d) {
            r.value.o[vo(i) + d] += p[j] * in.v[vo(j) + d];
            r.size.o[vo(i) + d] += p[j] * std::abs(in.v[vo(j) + d]) * (1 + score_size[j]);
          }
          if (!gradients) continue;
          dp[j] = dp_size[j] = 0;
          for (int64_t d = 0; d < c.d_v; ++d) {
            r.value.dv[vo(j) + d] += p[j] * in.d_o[vo(i) + d];
            r.size.dv[vo(j) + d] += p[j] * std::abs(in.d_o[vo(i) + d]) * (1 + score_size[j]);
            dp[j] += in.d_o[vo(i) + d] * in.v[vo(j) + d];
            dp_size[j] += std::abs(in.d_o[vo(i) + d] * in.v[vo(j) + d]);
          }
          delta += p[j] * dp[j];
          delta_size += p[j] * dp_size[j] * (1 + score_size[j]);
        }
        for (int64_t j = 0; gradients && j < c.n; ++j) {
          if (p[j] == 0) continue;
          const double ds = scale * p[j] * (dp[j] - delta);
          const double ds_size = scale * p[j] * (dp_size[j] + delta_size) * (1 + score_size[j]);
          for (int64_t d = 0; d < c.d_qk; ++d) {
            r.value.dq[qk(i) + d] += ds * in.k[qk(j) + d];
            r.size.dq[qk(i) + d] += ds_size * std::abs(in.k[qk(j) + d]);
            r.value.dk[qk(j) + d] += ds * in.q[qk(i) + d];
            r.size.dk[qk(j) + d] += ds_size * std::abs(in.q[qk(i) + d]);
          }
        }
      }
    }
  return r;
}

/// Half the distance between neighbouring numbers of T around 1, and around 0: the error of rounding.
struct Rounding {
  double relative, absolute;
};
template <class T>
inline constexpr Rounding kRounding{0x1p-53, 0};
template <>
inline constexpr Rounding kRounding<float>{0x1p-24, 0};
template <>
inline constexpr Rounding kRounding<bf16>{0x1p-8, 0};
template <>
inline constexpr Rounding kRounding<f16>{0x1p-11, 0x1p-25};

/// Whether every number is within what arithmetic whose sums err by `tolerance` times the size of what is summed, and
/// one rounding to T, allow.
template <class T>
bool near(const std::vector<T>& ours, const std::vector<double>& exact, const std::vector<double>& size,
          double tolerance) {
  REQUIRE(ours.size() == exact.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    const double error = tolerance * size[i];
    const double allowed = error + kRounding<T>.relative * (std::abs(exact[i]) + error) + kRounding<T>.absolute;
    if (!(std::abs(static_cast<double>(ours[i]) - exact[i]) <= allowed)) {
      MESSAGE("element ", i, ": ", static_cast<double>(ours[i]), ", not ", exact[i], " within ", allowed);
      return false;
    }
  }
  return true;
}

inline LayerPattern layer(const char* text) { return parse_attention(text).layers.at(0); }

}  // namespace lacuna::test
