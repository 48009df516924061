#include "ops/embedding/embedding.h"

#include <algorithm>

#include "core/dispatch.h"
#include "ops/embedding/embedding_kernels.h"
#include "ops/tokens.h"

namespace lacuna {

Variable embedding(const Tensor& tokens, const Variable& token, const std::vector<Variable>& position,
                   const Variable& start, std::optional<DType> dtype) {
  check(tokens.rank() == 2, "embedding: tokens must be [batch, n_ctx], got ", tokens.shape());
  check(token.shape().rank() == 2, "embedding: token must be [n_vocab, d_model], got ", token.shape());
  check(!position.empty(), "embedding: needs at least one position table");
  check(tokens.device() == token.device(), "embedding: tokens and tables must share a device, got ", tokens.device(),
        " and ", token.device());
  const int64_t n_ctx = tokens.dim(1), d_model = token.dim(1);
  check(start.shape() == Shape{d_model}, "embedding: start must be ", Shape{d_model}, " like the rows of token, got ",
        start.shape());
  check_same_dtype_and_device("embedding", {token, start});
  const DType h_dtype = dtype.value_or(token.dtype());
  check(accumulation_dtype(h_dtype) == token.dtype(), "embedding: tables for h of ", h_dtype, " must be ",
        accumulation_dtype(h_dtype), ", got ", token.dtype());
  int64_t places = 1;  // that the tables tell apart
  for (const Variable& table : position) {
    check(table.shape().rank() == 2 && table.dim(0) >= 1 && table.dim(1) == d_model,
          "embedding: position tables must be [extent, ", d_model, "], got ", table.shape());
    check_same_dtype_and_device("embedding", {token, table});
    places = std::min(places * table.dim(0), n_ctx);  // capped, so that it cannot overflow
  }
  check(places >= n_ctx, "embedding: position tables have ", places, " places for n_ctx ", n_ctx);
  check_tokens("embedding", "tokens", tokens, token.dim(0));

  std::vector<Tensor> tables;
  std::vector<int64_t> extents;
  std::vector<Variable> inputs{token};
  for (const Variable& table : position) {
    tables.push_back(table.value());
    extents.push_back(table.dim(0));
    inputs.push_back(table);
  }
  inputs.push_back(start);

  Tensor h = empty({tokens.dim(0), n_ctx, d_model}, h_dtype, token.device());
  LACUNA_DISPATCH(token.device(), embedding_forward, tokens, token.value(), tables, start.value(), h);

  std::vector<Tensor> values;  // of the inputs, for the shapes of their gradients
  for (const Variable& input : inputs) values.push_back(input.value());
  auto backward = [tokens, extents, values](const Tensor& dh, const Needs& needs) {
    Grads grads(values.size());               // what is returned
    std::vector<Tensor> into(values.size());  // where each gradient is added, undefined where nobody wants it
    for (size_t i = 0; i < values.size(); ++i) {
      if (!needs.wants(i)) continue;
      into[i] = needs.accumulator(i);
      if (!into[i].defined()) into[i] = grads[i] = zeros_like(values[i]);
    }
    const std::vector<Tensor> dposition(into.begin() + 1, into.end() - 1);
    LACUNA_DISPATCH(dh.device(), embedding_backward, dh, tokens, extents, into.front(), dposition, into.back());
    return grads;
  };
  return record("embedding", h, inputs, backward);
}

Tensor embedding_at(const Tensor& previous, const Tensor& position, const Tensor& token,
                    const std::vector<Tensor>& tables, const Tensor& start) {
  check(previous.rank() == 1 && previous.dtype() == DType::u8, "embedding_at: previous must be u8 [batch], got ",
        previous.dtype(), ' ', previous.shape());
  check(position.dtype() == DType::i64 && position.numel() == 1, "embedding_at: position must be i64 [1], got ",
        position.dtype(), ' ', position.shape());
  std::vector<Tensor> all{previous, position, start};
  all.insert(all.end(), tables.begin(), tables.end());
  for (const Tensor& t : all)
    check(t.device() == token.device(), "embedding_at: all tensors must be on ", token.device(), " like token, got ",
          t.device());
  const Tensor h = empty({previous.dim(0), token.dim(1)}, token.dtype(), token.device());
  LACUNA_DISPATCH(token.device(), embedding_at, previous, position, token, tables, start, h);
  return h;
}

}  // namespace lacuna
