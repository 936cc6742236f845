// A bundle as a program without Python reads it: JSON, SHA-256, base64, and a zip whose entries are not compressed.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgewise {

// What cannot be gone on with; ``status`` is the program's.
struct Refused : std::runtime_error {
  Refused(const std::string& words, int exit_status) : std::runtime_error(words), status(exit_status) {}
  int status;
};

inline constexpr int kFailed = 1, kWrongRequest = 2, kMissingRuntime = 3;

// A JSON value. A number stays the text it was written as, so that what is read and written again is the same.
struct Json {
  enum Kind { kNull, kBool, kNumber, kText, kList, kObject };

  Kind kind = kNull;
  bool truth = false;
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;

  static Json of(const std::string& value) {
    Json json;
    json.kind = kText;
    json.text = value;
    return json;
  }
  static Json of(const char* value) { return of(std::string(value)); }
  static Json of(bool value) {
    Json json;
    json.kind = kBool;
    json.truth = value;
    return json;
  }
  static Json of(long long value) { return number(std::to_string(value)); }
  static Json of(double value) {
    char digits[40];
    std::snprintf(digits, sizeof digits, "%.17g", value);
    return number(digits);
  }
  static Json number(const std::string& digits) {
    Json json;
    json.kind = kNumber;
    json.text = digits;
    return json;
  }
  static Json list() {
    Json json;
    json.kind = kList;
    return json;
  }
  static Json object() {
    Json json;
    json.kind = kObject;
    return json;
  }

  Json& put(const std::string& key, Json value) {
    for (auto& field : fields) {
      if (field.first == key) {
        field.second = std::move(value);
        return *this;
      }
    }
    fields.emplace_back(key, std::move(value));
    return *this;
  }

  const Json* find(const std::string& key) const {
    for (const auto& field : fields) {
      if (field.first == key) return &field.second;
    }
    return nullptr;
  }

  const Json& at(const std::string& key) const {
    const Json* value = find(key);
    if (value == nullptr) throw std::invalid_argument("missing key '" + key + "'");
    return *value;
  }

  const std::string& words() const { return expect(kText, "text").text; }
  double real() const { return std::strtod(expect(kNumber, "a number").text.c_str(), nullptr); }
  size_t count() const {
    const double value = real();
    if (!(value >= 0 && value < 1e15)) throw std::invalid_argument("wanted a count, found " + text);
    return static_cast<size_t>(value);
  }
  const std::vector<Json>& entries() const { return expect(kList, "a list").items; }

 private:
  const Json& expect(Kind wanted, const char* words) const {
    if (kind != wanted) throw std::invalid_argument(std::string("wanted ") + words);
    return *this;
  }
};

inline void write_text(const std::string& text, std::string& out) {
  out += '"';
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') {
      out += '\\';
      out += letter;
    } else if (static_cast<unsigned char>(letter) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(letter));
      out += code;
    } else {
      out += letter;
    }
  }
  out += '"';
}

inline void write_json(const Json& json, std::string& out) {
  const char* separator = "";
  switch (json.kind) {
    case Json::kNull:
      out += "null";
      break;
    case Json::kBool:
      out += json.truth ? "true" : "false";
      break;
    case Json::kNumber:
      out += json.text;
      break;
    case Json::kText:
      write_text(json.text, out);
      break;
    case Json::kList:
      out += '[';
      for (const Json& item : json.items) {
        out += separator;
        write_json(item, out);
        separator = ", ";
      }
      out += ']';
      break;
    case Json::kObject:
      out += '{';
      for (const auto& field : json.fields) {
        out += separator;
        write_text(field.first, out);
        out += ": ";
        write_json(field.second, out);
        separator = ", ";
      }
      out += '}';
      break;
  }
}

inline std::string dump(const Json& json) {
  std::string out;
  write_json(json, out);
  return out;
}

// Reads one value; throws std::invalid_argument for what is none.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json read() {
    Json json = value(0);
    blank();
    if (place_ != text_.size()) fail("its end");
    return json;
  }

 private:
  Json value(int depth) {
    if (depth > 64) fail("fewer levels");
    blank();
    const char letter = peek();
    if (letter == '{') return object(depth);
    if (letter == '[') return list(depth);
    if (letter == '"') return Json::of(quoted());
    for (const auto& [word, json] : {std::pair<std::string_view, Json>{"true", Json::of(true)},
                                     {"false", Json::of(false)},
                                     {"null", Json()}}) {
      if (text_.substr(place_, word.size()) == word) {
        place_ += word.size();
        return json;
      }
    }
    const size_t start = place_;
    while (place_ < text_.size() && std::strchr("+-0123456789.eE", text_[place_]) != nullptr) ++place_;
    if (start == place_) fail("a value");
    return Json::number(std::string(text_.substr(start, place_ - start)));
  }

  Json object(int depth) {
    Json json = Json::object();
    ++place_;
    for (blank(); peek() != '}';) {
      blank();
      std::string key = quoted();
      blank();
      take(':');
      json.fields.emplace_back(std::move(key), value(depth + 1));
      blank();
      if (peek() != '}') take(',');
    }
    ++place_;
    return json;
  }

  Json list(int depth) {
    Json json = Json::list();
    ++place_;
    for (blank(); peek() != ']';) {
      json.items.push_back(value(depth + 1));
      blank();
      if (peek() != ']') take(',');
    }
    ++place_;
    return json;
  }

  std::string quoted() {
    take('"');
    std::string out;
    while (peek() != '"') {
      const char letter = text_[place_++];
      if (letter != '\\') {
        out += letter;
        continue;
      }
      const char kind = peek();
      ++place_;
      static const char* const kFrom = "\"\\/bfnrt";
      static const char* const kTo = "\"\\/\b\f\n\r\t";
      const char* known = std::strchr(kFrom, kind);
      if (kind == 'u') {
        code_point(out);
      } else if (known != nullptr && kind != 0) {
        out += kTo[known - kFrom];
      } else {
        fail("an escape");
      }
    }
    ++place_;
    return out;
  }

  void code_point(std::string& out) {
    uint32_t code = four_digits();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(place_, 2) == "\\u") {
      place_ += 2;
      code = 0x10000 + ((code - 0xD800) << 10) + ((four_digits() - 0xDC00) & 0x3FF);
    }
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kLead[more] | (code >> (6 * more)));
    for (int left = more - 1; left >= 0; --left) out += static_cast<char>(0x80 | ((code >> (6 * left)) & 0x3F));
  }

  uint32_t four_digits() {
    const std::string digits(text_.substr(place_, 4));
    char* end = nullptr;
    const unsigned long code = std::strtoul(digits.c_str(), &end, 16);
    if (digits.size() != 4 || *end != 0) fail("four hexadecimal digits");
    place_ += 4;
    return static_cast<uint32_t>(code);
  }

  char peek() const {
    if (place_ >= text_.size()) fail("more");
    return text_[place_];
  }
  void take(char wanted) {
    if (peek() != wanted) fail(std::string(1, wanted).c_str());
    ++place_;
  }
  void blank() {
    while (place_ < text_.size() && std::strchr(" \t\r\n", text_[place_]) != nullptr) ++place_;
  }
  [[noreturn]] void fail(const char* wanted) const {
    throw std::invalid_argument("no JSON: wanted " + std::string(wanted) + " at byte " + std::to_string(place_));
  }

  std::string_view text_;
  size_t place_ = 0;
};

// SHA-256 (FIPS 180-4) in hexadecimal digits.
inline std::string sha256(std::string_view data) {
  static const uint32_t kRound[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
      0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
      0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
      0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
      0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
      0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto turn = [](uint32_t value, int bits) { return (value >> bits) | (value << (32 - bits)); };
  const auto mix = [&](const unsigned char* block) {
    uint32_t word[64], v[8];
    for (int i = 0; i < 16; ++i)
      word[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 | uint32_t{block[4 * i + 2]} << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      const uint32_t low = turn(word[i - 15], 7) ^ turn(word[i - 15], 18) ^ (word[i - 15] >> 3);
      const uint32_t high = turn(word[i - 2], 17) ^ turn(word[i - 2], 19) ^ (word[i - 2] >> 10);
      word[i] = word[i - 16] + low + word[i - 7] + high;
    }
    std::memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; ++i) {
      const uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]), most = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      const uint32_t one = v[7] + (turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25)) + choice + kRound[i] + word[i];
      const uint32_t two = (turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22)) + most;
      for (int k = 7; k > 0; --k) v[k] = v[k - 1] + (k == 4 ? one : 0);
      v[0] = one + two;
    }
    for (int i = 0; i < 8; ++i) state[i] += v[i];
  };
  const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
  size_t done = 0;
  for (; data.size() - done >= 64; done += 64) mix(bytes + done);
  unsigned char last[128] = {};
  const size_t left = data.size() - done, length = left < 56 ? 64 : 128;
  if (left) std::memcpy(last, bytes + done, left);
  last[left] = 0x80;
  for (int i = 0; i < 8; ++i) last[length - 1 - i] = static_cast<unsigned char>(uint64_t{data.size()} * 8 >> (8 * i));
  for (size_t at = 0; at < length; at += 64) mix(last + at);
  std::string digits;
  for (const uint32_t part : state) {
    char text[12];
    std::snprintf(text, sizeof text, "%08x", part);
    digits += text;
  }
  return digits;
}

inline std::string base64(std::string_view data) {
  static const char* const kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < data.size(); i += 3) {
    uint32_t three = 0;
    const size_t have = data.size() - i < 3 ? data.size() - i : 3;
    for (size_t k = 0; k < 3; ++k) three = three << 8 | (k < have ? static_cast<unsigned char>(data[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out += k <= have ? kLetters[three >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

// A whole file. Throws Refused where it cannot be read.
inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Refused("cannot read " + path, kWrongRequest);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A bundle that is whole: every entry is the one that its manifest names.
class Bundle {
 public:
  // Throws Refused for a file that is none, or is damaged.
  explicit Bundle(const std::string& path) : content_(read_file(path)), digest(sha256(content_)) {
    try {
      read_directory();
      manifest = JsonReader(entry("manifest.json")).read();
      for (const auto& [name, wanted] : manifest.at("entries").fields) {
        if (sha256(entry(name)) != wanted.words()) throw std::invalid_argument(name + " in it differs from what was written");
      }
    } catch (const std::logic_error& error) {
      throw Refused(path + " is not a whole bundle (" + error.what() + "): copy it here again", kWrongRequest);
    }
  }

  std::string_view entry(const std::string& name) const {
    const auto place = entries_.find(name);
    if (place == entries_.end()) throw std::invalid_argument("it has no " + name);
    return place->second;
  }

  // Bytes of a tensor in a safetensors entry.
  std::string_view tensor(const std::string& name, const std::string& key) const {
    const std::string_view content = entry(name);
    const size_t head = static_cast<size_t>(number(content, 0, 8));
    const Json table = JsonReader(part(content, 8, head)).read();
    const auto& span = table.at(key).at("data_offsets").entries();
    if (span.size() != 2 || span[1].count() < span[0].count()) throw std::invalid_argument(name + " is no safetensors file");
    return part(content, 8 + head + span[0].count(), span[1].count() - span[0].count());
  }

 private:
  static std::string_view part(std::string_view whole, uint64_t start, uint64_t size) {
    if (start > whole.size() || size > whole.size() - start) throw std::invalid_argument("it ends too early");
    return whole.substr(start, size);
  }
  static uint64_t number(std::string_view whole, uint64_t start, int size) {
    const std::string_view bytes = part(whole, start, size);
    uint64_t value = 0;
    for (int i = size - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    return value;
  }

  // The zip's directory lies at its end and counts from the zip's own start, which a first line may stand before.
  void read_directory() {
    const std::string_view whole = content_;
    const size_t end = whole.rfind(std::string_view("PK\5\6", 4));
    if (end == std::string_view::npos) throw std::invalid_argument("it has no end of a zip");
    const uint64_t size = number(whole, end + 12, 4), offset = number(whole, end + 16, 4);
    if (size + offset > end || end + 22 + number(whole, end + 20, 2) != whole.size()) throw std::invalid_argument("it ends too early");
    const uint64_t base = end - size - offset;
    uint64_t place = base + offset;
    for (uint64_t left = number(whole, end + 10, 2); left; --left) {
      if (part(whole, place, 4) != std::string_view("PK\1\2", 4)) throw std::invalid_argument("its directory is damaged");
      if (number(whole, place + 10, 2) != 0) throw std::invalid_argument("an entry is compressed");
      const uint64_t bytes = number(whole, place + 24, 4), local = base + number(whole, place + 42, 4);
      const uint64_t name = number(whole, place + 28, 2);
      const uint64_t start = local + 30 + number(whole, local + 26, 2) + number(whole, local + 28, 2);
      entries_[std::string(part(whole, place + 46, name))] = part(whole, start, bytes);
      place += 46 + name + number(whole, place + 30, 2) + number(whole, place + 32, 2);
    }
  }

  std::string content_;
  std::map<std::string, std::string_view> entries_;

 public:
  std::string digest;
  Json manifest;
};

}  // namespace edgewise
