#include "core/archive_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/error.h"

namespace lacuna {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data are little-endian");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;                // of the reference implementation
constexpr uint64_t kMaxInteger = (uint64_t{1} << 48) - 1;        // of the format's JSON schema
constexpr size_t kMaxNameBytes = 4096, kMaxEntries = 1'000'000;  // ours: beyond them a file is an attack or a mistake
constexpr size_t kAlignment = 64;
constexpr std::string_view kMetadata = "__metadata__";
constexpr std::string_view kNameRule = "names must be at most 4096 bytes and hold no NUL, got ";

/// An element type of the format.
struct ArchiveDtype {
  std::string_view name;
  int bits;
  std::optional<DType> dtype = {};  // absent: valid in a file, but Tensor does not have it
};

/// In the order of the reference implementation, by which its writer sorts (descending).
constexpr std::array<ArchiveDtype, 22> kDtypes{{{"BOOL", 8},
                                                {"F4", 4},
                                                {"F6_E2M3", 6},
                                                {"F6_E3M2", 6},
                                                {"U8", 8, DType::u8},
                                                {"I8", 8},
                                                {"F8_E5M2", 8},
                                                {"F8_E4M3", 8},
                                                {"F8_E8M0", 8},
                                                {"F8_E4M3FNUZ", 8},
                                                {"F8_E5M2FNUZ", 8},
                                                {"I16", 16},
                                                {"U16", 16},
                                                {"F16", 16, DType::f16},
                                                {"BF16", 16, DType::bf16},
                                                {"I32", 32, DType::i32},
                                                {"U32", 32},
                                                {"F32", 32, DType::f32},
                                                {"C64", 64},
                                                {"F64", 64, DType::f64},
                                                {"I64", 64, DType::i64},
                                                {"U64", 64}}};

const ArchiveDtype* find_dtype(std::string_view name) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& d) { return d.name == name; });
  return found == kDtypes.end() ? nullptr : &*found;
}

const ArchiveDtype& dtype_in_archive(DType dtype) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& d) { return d.dtype == dtype; });
  check(found != kDtypes.end(), "write_archive: no dtype of the format for ", dtype);
  return *found;
}

bool is_valid_name(std::string_view name) {
  return name.size() <= kMaxNameBytes && name.find('\0') == std::string_view::npos;
}

/// Prints extents as Shape does; those of a file may overflow, which no Shape can.
struct Extents {
  const std::vector<int64_t>& dims;
  friend std::ostream& operator<<(std::ostream& out, const Extents& extents) {
    out << '[';
    for (size_t i = 0; i < extents.dims.size(); ++i) out << (i ? ", " : "") << extents.dims[i];
    return out << ']';
  }
};

/// Follows the JSON of a header event by event and refuses everything but the one structure that it may have. That
/// bounds the depth (3) and the memory, whatever the file holds.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& file, ArchiveHeader& header) : file_(file), header_(header) {}

  bool start_object(std::size_t) override {
    if (where_ == Where::outside) {
      where_ = Where::header;
    } else if (where_ == Where::header) {
      where_ = name_ == kMetadata ? Where::metadata : Where::tensor;
      dtype_ = nullptr;
      shape_ = offsets_ = {};
    } else {
      refuse("an object");
    }
    return true;
  }

  bool key(string_t& key) override {
    check(is_valid_name(key), file_, ": ", kNameRule, Quoted{key});
    if (where_ == Where::header) {
      if (key == kMetadata) {
        check(!has_metadata_, file_, ": duplicate key ", Quoted{key}, " in the header");
        has_metadata_ = true;
      } else {
        check(header_.entries.size() < kMaxEntries, file_, ": must hold at most ", kMaxEntries, " tensors, has more");
        check(!header_.entries.contains(key), file_, ": duplicate key ", Quoted{key}, " in the header");
      }
      name_ = key;
    } else if (where_ == Where::metadata) {
      check(!header_.metadata.contains(key), file_, ": duplicate key ", Quoted{key}, " in __metadata__");
      key_ = key;
    } else {
      const bool known = key == "dtype" || key == "shape" || key == "data_offsets";
      check(known, tensor(), "keys must be dtype, shape and data_offsets, got ", Quoted{key});
      const bool seen = key == "dtype" ? dtype_ != nullptr : (key == "shape" ? shape_ : offsets_).has_value();
      check(!seen, tensor(), "duplicate key ", Quoted{key});
      key_ = key;
    }
    return true;
  }

  bool string(string_t& text) override {
    if (where_ == Where::metadata) {
      header_.metadata.emplace(key_, text);
    } else if (where_ == Where::tensor && key_ == "dtype") {
      dtype_ = find_dtype(text);
      check(dtype_ != nullptr, tensor(), "dtype must be one of the format's (F32, BF16, ...), got ", Quoted{text});
    } else {
      refuse("a string");
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (where_ != Where::tensor || key_ == "dtype") refuse("a list");
    where_ = Where::list;
    list().emplace();
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ != Where::list) refuse("a number");
    check(value <= kMaxInteger, tensor(), key_, " must hold integers up to ", kMaxInteger, ", got ", value);
    const size_t limit = key_ == "shape" ? size_t{Shape::kMaxRank} : 2;
    check(list()->size() < limit, tensor(), key_, " must hold at most ", limit, " integers, got more");
    list()->push_back(static_cast<int64_t>(value));
    return true;
  }

  bool end_array() override {
    where_ = Where::tensor;
    check(key_ == "shape" || list()->size() == 2, tensor(), "data_offsets must hold 2 integers, got ", list()->size());
    return true;
  }

  bool end_object() override {
    if (where_ == Where::tensor) add_tensor();
    where_ = where_ == Where::header ? Where::outside : Where::header;
    return true;
  }

  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("a boolean"); }
  bool number_integer(number_integer_t) override { refuse("a number with a sign"); }
  bool number_float(number_float_t, const string_t& text) override { refuse("the number " + text.substr(0, 40)); }
  bool binary(binary_t&) override { refuse("binary data"); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    // what() is "[json.exception.parse_error.101] parse error at line 1, column 2: <reason>".
    const std::string_view what = e.what();
    const size_t reason = what.find(": ");
    fail(file_, ": header must be strict JSON, at its byte ", position, ": ",
         Quoted{reason == std::string_view::npos ? what : what.substr(reason + 2)});
  }

 private:
  enum class Where { outside, header, metadata, tensor, list };

  AboutTensor tensor() const { return {file_, name_}; }

  std::optional<std::vector<int64_t>>& list() { return key_ == "shape" ? shape_ : offsets_; }

  [[noreturn]] void refuse(const std::string& found) const {
    switch (where_) {
      case Where::outside: fail(file_, ": header must be an object, got ", found);
      case Where::header: fail(file_, ": ", Quoted{name_}, " in the header must be an object, got ", found);
      case Where::metadata: fail(file_, ": __metadata__ must map strings to strings, ", Quoted{key_}, " is ", found);
      case Where::tensor:
        fail(tensor(), key_, " must be ", key_ == "dtype" ? "a string" : "a list of integers", ", got ", found);
      case Where::list: fail(tensor(), key_, " must hold integers >= 0 written plainly, got ", found);
    }
    fail(file_, ": unexpected ", found);
  }

  void add_tensor() {
    const char* const missing = !dtype_ ? "dtype" : !shape_ ? "shape" : !offsets_ ? "data_offsets" : nullptr;
    check(missing == nullptr, tensor(), "must have dtype, shape and data_offsets, lacks ", missing ? missing : "none");

    const Extents extents{*shape_};
    const bool is_empty = std::find(shape_->begin(), shape_->end(), 0) != shape_->end();
    int64_t bits = dtype_->bits;
    for (const int64_t d : *shape_)
      check(is_empty || !__builtin_mul_overflow(bits, d, &bits), tensor(), "size of shape ", extents, " of ",
            dtype_->name, " overflows 63 bits");
    if (is_empty) bits = 0;
    check(bits % 8 == 0, tensor(), "shape ", extents, " of ", dtype_->name, " must fill whole bytes, got ", bits,
          " bits");
    const int64_t begin = (*offsets_)[0], end = (*offsets_)[1];
    check(begin <= end, tensor(), "data_offsets must not run backwards, got [", begin, ", ", end, "]");
    check(end - begin == bits / 8, tensor(), "shape ", extents, " of ", dtype_->name, " needs ", bits / 8,
          " bytes, data_offsets [", begin, ", ", end, "] hold ", end - begin);
    header_.entries.emplace(
        name_, Archive::Entry{std::string(dtype_->name), Shape(std::span<const int64_t>(*shape_)), begin, end});
  }

  const std::string& file_;
  ArchiveHeader& header_;
  Where where_ = Where::outside;
  bool has_metadata_ = false;
  std::string name_;  // the latest key of the header
  std::string key_;   // the latest key of the object inside it
  const ArchiveDtype* dtype_ = nullptr;
  std::optional<std::vector<int64_t>> shape_, offsets_;
};

/// Tensors must tile the data: the first begins at 0, each where the one before ends, the last ends with the file.
void check_tiling(const std::string& file, const ArchiveHeader& header, int64_t data_bytes) {
  std::vector<const std::pair<const std::string, Archive::Entry>*> order;
  for (const auto& entry : header.entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  int64_t end = 0;
  for (const auto* entry : order) {
    const int64_t begin = entry->second.begin;
    check(begin == end, AboutTensor{file, entry->first}, "data must begin at byte ", end,
          ", where the tensor before ends, got ", begin, begin < end ? " (overlap)" : " (hole)");
    end = entry->second.end;
  }
  check(end == data_bytes, file, ": tensors must end with the file, ", data_bytes, " bytes after the header, end at ",
        end, end < data_bytes ? " (trailing bytes)" : " (truncated)");
}

/// `text` as JSON; `what` of `file` it is, should it not be UTF-8.
std::string json_string(const std::string& text, const std::string& file, const char* what) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(file, ": ", what, " must be valid UTF-8, got ", Quoted{text});
  }
}

}  // namespace

ArchiveHeader parse_archive_header(const std::string& file, std::string_view bytes) {
  check(bytes.size() >= 8, file, ": must begin with 8 bytes of header length, has ", bytes.size(), " bytes");
  uint64_t length = 0;
  for (size_t i = 0; i < 8; ++i) length |= uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  check(length <= kMaxHeaderBytes, file, ": header must be at most ", kMaxHeaderBytes, " bytes, says it has ", length,
        " (not safetensors?)");
  check(length <= bytes.size() - 8, file, ": header of ", length, " bytes does not fit the file of ", bytes.size(),
        " bytes (truncated, or not safetensors)");

  const std::string_view json = bytes.substr(8, length);
  const size_t first = json.find_first_not_of(" \t\r\n");
  check(first != std::string_view::npos && json[first] == '{', file, ": header must begin with '{', got ",
        Quoted{json.substr(std::min(first, json.size()), 1)});
  const size_t nul = json.find('\0');  // which the JSON library would take for the end
  check(nul == std::string_view::npos, file, ": header must be strict JSON, has a NUL at its byte ", nul + 1);

  ArchiveHeader header;
  header.data_begin = static_cast<int64_t>(8 + length);
  HeaderReader reader(file, header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);  // the reader throws for every error
  check_tiling(file, header, static_cast<int64_t>(bytes.size()) - header.data_begin);
  return header;
}

std::string compose_archive_header(const std::string& file, const std::vector<NamedTensor>& tensors,
                                   const Metadata& metadata) {
  check(tensors.size() <= kMaxEntries, file, ": must hold at most ", kMaxEntries, " tensors, got ", tensors.size());
  std::string header(8, '\0');  // the length, filled in below
  header += '{';
  const auto separate = [&] {
    if (header.back() != '{') header += ',';
  };

  if (!metadata.empty()) {
    header += concat('"', kMetadata, "\":{");
    for (const auto& [key, value] : metadata) {
      check(is_valid_name(key), file, ": __metadata__: ", kNameRule, Quoted{key});
      separate();
      header += json_string(key, file, "a key of __metadata__");
      header += ':';
      header += json_string(value, file, "a value of __metadata__");
    }
    header += '}';
  }

  std::set<std::string_view> names;
  int64_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    const AboutTensor context{file, name};
    check(is_valid_name(name), file, ": ", kNameRule, Quoted{name});
    check(name != kMetadata, context, "the format reserves this name");
    check(names.insert(name).second, context, "the name occurs twice");
    check(tensor.defined(), context, "must be defined");
    int64_t end = 0;
    check(!__builtin_add_overflow(begin, tensor.bytes(), &end) && static_cast<uint64_t>(end) <= kMaxInteger, context,
          "the archive must have at most ", kMaxInteger, " bytes");

    separate();
    header += json_string(name, file, "the name of a tensor");
    header += concat(":{\"dtype\":\"", dtype_in_archive(tensor.dtype()).name, "\",\"shape\":[");
    for (int64_t i = 0; i < tensor.rank(); ++i) {
      check(static_cast<uint64_t>(tensor.dim(i)) <= kMaxInteger, context, "extents must be at most ", kMaxInteger,
            ", got ", tensor.shape());
      header += concat(i ? "," : "", tensor.dim(i));
    }
    header += concat("],\"data_offsets\":[", begin, ',', end, "]}");
    begin = end;
  }
  header += '}';
  header.resize((header.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');

  const uint64_t length = header.size() - 8;
  check(length <= kMaxHeaderBytes, file, ": header must be at most ", kMaxHeaderBytes, " bytes, needs ", length);
  for (size_t i = 0; i < 8; ++i) header[i] = static_cast<char>(length >> (8 * i));
  return header;
}

bool is_stored_before(const NamedTensor& a, const NamedTensor& b) {
  const ArchiveDtype *const dtype_a = &dtype_in_archive(a.tensor.dtype()), *const dtype_b =
                                                                               &dtype_in_archive(b.tensor.dtype());
  return dtype_a != dtype_b ? dtype_a > dtype_b : a.name < b.name;
}

std::optional<DType> dtype_from_archive(std::string_view name) {
  const ArchiveDtype* const found = find_dtype(name);
  return found ? found->dtype : std::nullopt;
}

std::ostream& operator<<(std::ostream& out, const Quoted& quoted) {
  constexpr size_t kLongest = 160;
  out << '\'';
  for (const char c : quoted.text.substr(0, kLongest)) {
    if (c >= ' ' && c <= '~') {
      out << c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out << "\\x"
          << "0123456789abcdef"[byte >> 4] << "0123456789abcdef"[byte & 15];
    }
  }
  return out << (quoted.text.size() > kLongest ? "...'" : "'");
}

std::ostream& operator<<(std::ostream& out, const AboutTensor& about) {
  return out << about.file << ": tensor " << Quoted{about.name} << ": ";
}

}  // namespace lacuna
