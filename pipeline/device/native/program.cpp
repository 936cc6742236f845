// A bundle's ExecuTorch files measured by one program, for devices without Python: a phone over adb, a small board.
//
//   edgewise_native BUNDLE.pyz [--quick | --normal | --sustained MINUTES | --brief SECONDS] [--threads N] [--pin P]
//                   [--only NAME]... [--any-version] [--progress FILE] [--out RESULT.json] [--list]
//
// Options, what is measured, exit statuses and the result are those of the runner in Python that a bundle holds. Compiled
// together with pte.cpp and -DEDGEWISE_EXECUTORCH=VERSION, the version of ExecuTorch that it is linked with.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <ctime>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bundle.h"
#include "machine.h"

#ifndef EDGEWISE_EXECUTORCH
#error "name ExecuTorch's version: -DEDGEWISE_EXECUTORCH=1.4.1"
#endif
#define EDGEWISE_WORDS(text) #text
#define EDGEWISE_QUOTED(text) EDGEWISE_WORDS(text)

extern "C" {
void* edgewise_open(const void* data, size_t size, uint32_t threads, char* said, size_t room);
size_t edgewise_classes(void* session);
int edgewise_run(void* session, const void* image, size_t size, float* answers, size_t count, char* said, size_t room);
}

namespace edgewise {
namespace {

const char* const kRunner = "1";
const char* const kVersion = EDGEWISE_QUOTED(EDGEWISE_EXECUTORCH);
const char* const kTarget = "xnnpack";
constexpr size_t kMostKept = 200;       // times that a block keeps of each file
constexpr double kLongest = 600;        // seconds that a file may take to be timed
constexpr double kReferenceEvery = 0.02;  // seconds of calls between two of the reference
constexpr uint64_t kWork = 60'000;

void say(const std::string& words) { std::fprintf(stderr, "edgewise: %s\n", words.c_str()); }

uint64_t clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}
uint64_t wall_ns() { return clock_ns(CLOCK_MONOTONIC); }

struct Mode {
  std::string name = "quick";
  double calls = 128, seconds = 10, blocks = 30;
};

struct Options {
  std::string bundle, pin, progress, out = "result.json";
  std::vector<std::string> only;
  Mode mode;
  size_t threads = 1;
  bool any_version = false, list = false;
};

double positive(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != 0 || !(value > 0 && value < 1e5))
    throw Refused(option + ": wanted more than 0, found " + text, kWrongRequest);
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto next = [&] {
      if (++i >= argc) throw Refused(word + ": wanted a value behind it", kWrongRequest);
      return std::string(argv[i]);
    };
    if (word == "--quick") {
      options.mode = Mode();
    } else if (word == "--normal") {
      options.mode = {"normal", 1024, 60, 30};
    } else if (word == "--sustained") {
      const double minutes = positive(word, next());
      options.mode = {"sustained", 1, 60 * minutes, std::max(2.0, std::nearbyint(10 * minutes))};
    } else if (word == "--brief") {
      options.mode = {"brief", 1, positive(word, next()), 10};
    } else if (word == "--threads") {
      const std::string text = next();
      options.threads = static_cast<size_t>(std::strtol(text.c_str(), nullptr, 10));
      if (options.threads < 1 || options.threads > 4096)
        throw Refused("--threads: wanted at least 1, found " + text, kWrongRequest);
    } else if (word == "--pin") {
      options.pin = next();
    } else if (word == "--only") {
      options.only.push_back(next());
    } else if (word == "--progress") {
      options.progress = next();
    } else if (word == "--out") {
      options.out = next();
    } else if (word == "--any-version") {
      options.any_version = true;
    } else if (word == "--list") {
      options.list = true;
    } else if (options.bundle.empty() && word.rfind("--", 0) != 0) {
      options.bundle = word;
    } else {
      throw Refused("unknown argument " + word, kWrongRequest);
    }
  }
  if (options.bundle.empty()) throw Refused("wanted BUNDLE.pyz", kWrongRequest);
  return options;
}

// Written aside and put in its place.
void write_whole(const std::string& path, const std::string& content) {
  const std::string aside = path + ".part";
  const int file = open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  size_t done = 0;
  while (file >= 0 && done < content.size()) {
    const ssize_t count = write(file, content.data() + done, content.size() - done);
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  const bool whole = file >= 0 && done == content.size() && fsync(file) == 0;
  if (file >= 0) close(file);
  if (whole && std::rename(aside.c_str(), path.c_str()) == 0) return;
  const std::string reason = std::strerror(errno);
  unlink(aside.c_str());
  throw Refused(reason + ": " + path, kFailed);
}

// Finished steps, a line each, so that the same command goes on after a kill.
class Progress {
 public:
  Progress(const std::string& path, const Json& key) : path_(path) {
    if (path.empty()) return;
    lines_ = dump(key) + "\n";
    read();
    write_whole(path, lines_);
  }

  Json once(const std::string& step, const std::function<Json()>& work) {
    if (const Json* before = steps_.find(step)) return *before;
    Json value = work();
    if (!path_.empty()) {
      lines_ += line(step, value);
      write_whole(path_, lines_);
    }
    return value;
  }

 private:
  static std::string line(const std::string& step, const Json& value) {
    Json entry = Json::object();
    entry.put("step", Json::of(step)).put("found", value);
    return dump(entry) + "\n";
  }

  void read() {
    std::ifstream file(path_, std::ios::binary);
    std::string text;
    if (!std::getline(file, text) || text + "\n" != lines_) return;
    while (std::getline(file, text)) {
      try {
        const Json entry = JsonReader(text).read();
        steps_.put(entry.at("step").words(), entry.at("found"));
        lines_ += text + "\n";
      } catch (const std::logic_error&) {
        return;
      }
    }
  }

  std::string path_, lines_;
  Json steps_ = Json::object();
};

// What ``work`` gives, from a process of its own, so that a runtime that crashes costs one row. Throws std::runtime_error.
Json apart(const std::function<Json()>& work) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe could be opened");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("no process could be started");
  if (child == 0) {
    Json reply = Json::object();
    try {
      reply.put("found", work());
    } catch (const std::bad_alloc&) {
      reply.put("failed", Json::of("the device has not enough memory for it"));
    } catch (const std::exception& error) {
      reply.put("failed", Json::of(error.what()));
    }
    const std::string text = dump(reply);
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t count = write(ends[1], text.data() + done, text.size() - done);
      if (count <= 0) _exit(1);
      done += static_cast<size_t>(count);
    }
    // At once: on Arm the tear-down of the runtime's objects was seen to crash.
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[65536];
  for (ssize_t count; (count = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(count));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status))
    throw std::runtime_error("its runtime crashed (signal " + std::to_string(WTERMSIG(status)) + ")");
  try {
    const Json reply = JsonReader(text).read();
    if (const Json* found = reply.find("found")) return *found;
    throw std::runtime_error("its runtime refused it: " + reply.at("failed").words());
  } catch (const std::logic_error&) {
    throw std::runtime_error("its process ended with status " + std::to_string(WEXITSTATUS(status)) + " and no answer");
  }
}

// A file in its runtime, and how its images are fed.
class Network {
 public:
  Network(const Bundle& bundle, const Json& file, size_t threads) : file_(file) {
    const std::string_view content = bundle.entry(file.at("path").words());
    const auto start = wall_ns();
    session_ = edgewise_open(content.data(), content.size(), static_cast<uint32_t>(threads), said_, sizeof said_);
    if (session_ == nullptr) throw std::runtime_error(said_);
    load_ms = static_cast<double>(wall_ns() - start) / 1e6;
    answers_.resize(edgewise_classes(session_));
  }

  // ``image`` uint8 [C, H, W] -> bytes [H, W, C], or (bytes / 255 - mean) / std by channel, float32 [C, H, W] or [H, W, C].
  std::string feed(std::string_view image, size_t channels) const {
    const size_t pixels = image.size() / channels;
    const auto* bytes = reinterpret_cast<const unsigned char*>(image.data());
    const std::string kind = file_.at("fed").words();
    if (kind == "bytes") {
      std::string turned(image.size(), '\0');
      for (size_t i = 0; i < image.size(); ++i) turned[i % pixels * channels + i / pixels] = static_cast<char>(bytes[i]);
      return turned;
    }
    const auto &mean = file_.at("mean").entries(), &spread = file_.at("std").entries();
    if (mean.size() != channels || spread.size() != channels) throw std::runtime_error("its means are not its channels'");
    std::string fed(image.size() * sizeof(float), '\0');
    for (size_t i = 0; i < image.size(); ++i) {
      const auto middle = static_cast<float>(mean[i / pixels].real()), scale = static_cast<float>(spread[i / pixels].real());
      const float value = (static_cast<float>(bytes[i]) / 255.0f - middle) / scale;
      const size_t place = kind == "channels-last" ? i % pixels * channels + i / pixels : i;
      std::memcpy(&fed[place * sizeof(float)], &value, sizeof value);
    }
    return fed;
  }

  const std::vector<float>& run(const std::string& fed) {
    if (edgewise_run(session_, fed.data(), fed.size(), answers_.data(), answers_.size(), said_, sizeof said_) != 0)
      throw std::runtime_error(said_);
    return answers_;
  }

  double load_ms = 0;

 private:
  const Json& file_;
  void* session_ = nullptr;
  std::vector<float> answers_;
  char said_[512] = {};
};

// A fixed amount of work in registers.
uint64_t reference() {
  volatile uint64_t start = 1;
  uint64_t value = start;
  for (uint64_t i = 0; i < kWork; ++i) value = (value * 1103515245 + 12345) & 0x7FFFFFFF;
  return value;
}

struct Reference {
  double wall, cpu;
};

Reference time_reference() {
  const uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), wall = wall_ns();
  volatile uint64_t kept = reference();
  static_cast<void>(kept);
  const uint64_t wall_after = wall_ns();
  return {static_cast<double>(wall_after - wall), static_cast<double>(clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu)};
}

// The files' times against each other, in an order drawn anew for each round, and what else the processor did meanwhile.
class Meter {
 public:
  Meter(const std::vector<std::function<void()>>& calls, const Mode& mode, double share, const std::vector<int>& cpus)
      : calls_(calls), cpus_(cpus), mode_(mode), files_(calls.size()) {
    for (size_t i = 0; i < calls.size(); ++i) order_.push_back(i);
    const double number = static_cast<double>(calls.size()), seconds = mode.seconds / share;
    const double round = std::max(warm_up(seconds), 1e-7);
    least_ = std::ceil(mode.calls / mode.blocks);
    duration_ = seconds * number / mode.blocks;
    longest_ = kLongest * number / mode.blocks;
    stride_ = std::max<size_t>(1, static_cast<size_t>(std::ceil(std::max(duration_ / round, least_) / kMostKept)));
    between_ = std::max<size_t>(1, static_cast<size_t>(std::nearbyint(kReferenceEvery / round)));
  }

  Json measure() {
    for (int block = 0; block < static_cast<int>(mode_.blocks); ++block) one_block();
    Json files = Json::list(), result = Json::object();
    for (const File& file : files_) {
      Json entry = Json::object();
      entry.put("times_ns", file.times).put("calls", Json::of(static_cast<long long>(file.calls)));
      entry.put("busy_ns", Json::of(static_cast<long long>(file.busy)));
      files.items.push_back(entry);
    }
    return result.put("blocks", blocks_).put("files", files);
  }

 private:
  struct File {
    Json times = Json::list();
    uint64_t calls = 0, busy = 0;
  };

  // Seconds that one round of all takes, after as many rounds as caches, pools and clocks need to settle.
  double warm_up(double seconds) {
    const double until = static_cast<double>(wall_ns()) / 1e9 + std::min(1.0, seconds / 10);
    double fastest = std::numeric_limits<double>::infinity();
    for (int rounds = 0; rounds < 3 || (static_cast<double>(wall_ns()) / 1e9 < until && rounds < 200); ++rounds) {
      const uint64_t start = wall_ns();
      for (const auto& call : calls_) call();
      fastest = std::min(fastest, static_cast<double>(wall_ns() - start) / 1e9);
      time_reference();
    }
    return fastest;
  }

  void one_block() {
    for (File& file : files_) file.times.items.push_back(Json::list());
    std::vector<Reference> references;
    const auto stolen_before = stolen();
    const uint64_t cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID), start = wall_ns();
    for (size_t rounds = 0;; ++rounds) {
      // Counted in rounds: by the clock it would be due just when the scheduler gives the processor back.
      if (rounds % between_ == 0) references.push_back(time_reference());
      const double seconds = static_cast<double>(wall_ns() - start) / 1e9;
      const bool enough = seconds >= duration_ && static_cast<double>(rounds) >= least_;
      if (rounds > 0 && (enough || seconds > longest_)) break;
      one_round(rounds % stride_ == 0);
    }
    const uint64_t wall = wall_ns() - start, spent = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    blocks_.items.push_back(told(wall, spent, references, stolen_before));
  }

  void one_round(bool keep) {
    // What ran before leaves its own in the caches, and would always slow the same file.
    std::shuffle(order_.begin(), order_.end(), draw_);
    for (const size_t index : order_) {
      const uint64_t start = wall_ns();
      calls_[index]();
      const uint64_t duration = std::max<uint64_t>(1, wall_ns() - start);
      ++files_[index].calls;
      files_[index].busy += duration;
      if (keep) files_[index].times.items.back().items.push_back(Json::of(static_cast<long long>(duration)));
    }
  }

  Json told(uint64_t wall, uint64_t cpu, std::vector<Reference>& references, std::optional<long long> before) const {
    Reference sum{0, 0};
    for (const Reference& entry : references) sum = {sum.wall + entry.wall, sum.cpu + entry.cpu};
    std::sort(references.begin(), references.end(), [](const Reference& a, const Reference& b) { return a.cpu < b.cpu; });
    const auto now = stolen();
    Json block = Json::object();
    block.put("wall_ms", Json::of(static_cast<double>(wall) / 1e6)).put("cpu_ms", Json::of(static_cast<double>(cpu) / 1e6));
    block.put("reference_wall_ms", Json::of(sum.wall / 1e6)).put("reference_cpu_ms", Json::of(sum.cpu / 1e6));
    block.put("reference_ms", Json::of(references[references.size() / 2].cpu / 1e6));
    block.put("stolen_ticks", now && before ? Json::of(*now - *before) : Json());
    return block.put("clock_khz", optional_number(clock_khz(cpus_))).put("temperature_c", temperature_c());
  }

  const std::vector<std::function<void()>>& calls_;
  const std::vector<int>& cpus_;
  Mode mode_;
  std::vector<File> files_;
  std::vector<size_t> order_;
  std::mt19937 draw_;
  Json blocks_ = Json::list();
  double least_ = 1, duration_ = 0, longest_ = 0;
  size_t stride_ = 1, between_ = 1;
};

// Major and minor number; what is no number counts as 0.
std::pair<long, long> order_of(const std::string& version) {
  char* end = nullptr;
  const long major = std::strtol(version.c_str(), &end, 10);
  return {major, *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0};
}

class Session {
 public:
  Session(const Bundle& bundle, const Options& options)
      : bundle_(bundle), options_(options), device_(describe()), cpus_(choose(options.pin, options.threads)) {
    for (const Json& file : bundle.manifest.at("files").entries()) {
      const auto& only = options.only;
      if (only.empty() || std::find(only.begin(), only.end(), file.at("name").words()) != only.end()) files_.push_back(&file);
    }
    const Json& slice = bundle.manifest.at("slice");
    count_ = slice.at("count").count();
    channels_ = slice.at("shape").entries().at(0).count();
    const std::string_view images = bundle.entry("slice/images.u8"), labels = bundle.entry("slice/labels.u16");
    if (count_ == 0 || channels_ == 0 || images.size() % count_ != 0 || labels.size() != 2 * count_)
      throw Refused(options.bundle + ": its labelled images do not fit together: copy it here again", kWrongRequest);
  }

  int run() {
    pin_to(cpus_);
    say("on " + processors());
    Progress progress(options_.progress, key());
    std::vector<Json> rows;
    for (const Json* file : files_) rows.push_back(row_of(*file, progress));
    refuse_if_nothing_runs(rows);
    const Json groups = timed(rows, progress);
    write_whole(options_.out, dump(document(rows, groups)) + "\n");
    bool failed = false;
    for (const Json& row : rows) {
      const bool measured = row.at("error").kind == Json::kNull;
      failed = failed || !measured;
      std::printf("%s: %s\n", row.at("file").words().c_str(), measured ? "measured" : row.at("error").words().c_str());
    }
    std::printf("result: %s\n", options_.out.c_str());
    return failed ? kFailed : 0;
  }

 private:
  std::string processors() const {
    if (cpus_.empty()) return "processors that it cannot choose";
    std::string text = cpus_.size() == 1 ? "processor" : "processors";
    const auto speed = speeds(allowed_before_);
    for (const int cpu : cpus_) text += " " + std::to_string(cpu);
    std::set<long long> kinds;
    for (const auto& entry : speed) kinds.insert(entry.second);
    if (kinds.size() < 2) return text;
    return text + (speed.at(cpus_[0]) == *kinds.rbegin() ? ", of the fastest" : ", not of the fastest");
  }

  Json mode() const {
    Json mode = Json::object();
    mode.put("name", Json::of(options_.mode.name)).put("calls", Json::of(static_cast<long long>(options_.mode.calls)));
    return mode.put("seconds", Json::of(options_.mode.seconds))
        .put("blocks", Json::of(static_cast<long long>(options_.mode.blocks)));
  }

  Json pinned() const {
    Json list = Json::list();
    for (const int cpu : cpus_) list.items.push_back(Json::of(static_cast<long long>(cpu)));
    return list;
  }

  Json key() const {
    Json key = Json::object(), only = Json::list();
    for (const std::string& name : options_.only) only.items.push_back(Json::of(name));
    key.put("bundle", Json::of(bundle_.digest)).put("runner", Json::of(std::string("native ") + kRunner)).put("mode", mode());
    key.put("threads", Json::of(static_cast<long long>(options_.threads))).put("pinned", pinned()).put("only", only);
    return key.put("any_version", Json::of(options_.any_version));
  }

  static void refuse_if_nothing_runs(const std::vector<Json>& rows) {
    std::set<std::string> reasons;
    for (const Json& row : rows) {
      if (!row.at("missing").truth) return;
      reasons.insert(row.at("error").words());
    }
    std::string text;
    for (const std::string& reason : reasons) text += (text.empty() ? "" : "; ") + reason;
    if (!rows.empty()) throw Refused(text, kMissingRuntime);
  }

  // Everything of one file but its times.
  Json row_of(const Json& file, Progress& progress) {
    const std::string& name = file.at("name").words();
    Json row = Json::object();
    row.put("target", file.at("target")).put("file", file.at("name")).put("error", Json());
    row.put("missing", Json::of(false)).put("latency", Json());
    const std::string refused = refusal(file);
    if (!refused.empty()) return row.put("error", Json::of(refused)).put("missing", Json::of(true));
    say("looking at " + name);
    try {
      const Json facts = progress.once("look " + name, [&] { return apart([&] { return look(file); }); });
      for (const auto& fact : facts.fields) row.put(fact.first, fact.second);
    } catch (const Refused&) {
      throw;
    } catch (const std::runtime_error& error) {
      row.put("error", Json::of(error.what()));
    }
    return row;
  }

  // Why this program cannot run the file; empty where it can.
  std::string refusal(const Json& file) const {
    const std::string& target = file.at("target").words();
    if (target != kTarget)
      return "files for " + target + " have no runtime in this program, which runs ExecuTorch files (" + kTarget + ") alone";
    const Json* wanted = bundle_.manifest.at("wanted").find("executorch");
    if (options_.any_version || wanted == nullptr || wanted->kind != Json::kText) return "";
    if (!(order_of(kVersion) < order_of(wanted->text))) return "";
    return "wanted executorch " + wanted->text + " or newer, in which the files were verified, found " + kVersion +
           " linked into this program: compile it against the newer one, or measure in the older one with --any-version";
  }

  std::string_view image(std::string_view images, size_t count, size_t index) const {
    const size_t size = images.size() / count;
    return images.substr(index * size, size);
  }

  Json look(const Json& file) const {
    const auto start = wall_ns();
    const std::string_view content = bundle_.entry(file.at("path").words()), slice = bundle_.entry("slice/images.u8");
    set_back_high_water();
    const auto before = high_water();
    Network network(bundle_, file, options_.threads);
    const std::string first = network.feed(image(slice, count_, 0), channels_);
    const auto called = wall_ns();
    network.run(first);
    const double first_ms = static_cast<double>(wall_ns() - called) / 1e6;
    const auto after = high_water();
    Json facts = Json::object(), load = Json::object(), runtime = Json::object(), accuracy = Json::object();
    facts.put("sha256", Json::of(sha256(content))).put("golden_answers", golden_answers(network, file));
    size_t correct = 0;
    facts.put("answers", Json::of(classes(network, slice, correct)));
    load.put("first", Json::of(network.load_ms)).put("again", Json::of(Network(bundle_, file, options_.threads).load_ms));
    facts.put("load_ms", load).put("first_call_ms", Json::of(first_ms));
    facts.put("peak_memory_bytes", before && after ? Json::of(std::max(0LL, *after - *before)) : Json());
    facts.put("seconds", Json::of(static_cast<double>(wall_ns() - start) / 1e9));
    runtime.put("name", Json::of("executorch")).put("version", Json::of(kVersion)).put("provider", Json::of("XNNPACK"));
    accuracy.put("top1", Json::of(static_cast<double>(correct) / static_cast<double>(count_)));
    accuracy.put("n", Json::of(static_cast<long long>(count_)));
    return facts.put("runtime", runtime).put("accuracy", accuracy);
  }

  Json golden_answers(Network& network, const Json& file) const {
    const Json& golden = file.at("golden");
    if (golden.kind == Json::kNull) return Json();
    const std::string_view images = bundle_.tensor(golden.at("entry").words(), "images");
    const size_t count = golden.at("count").count();
    if (count == 0 || images.size() % count != 0) throw std::runtime_error("its golden images do not fit together");
    std::string answers;
    for (size_t i = 0; i < count; ++i) {
      const auto& given = network.run(network.feed(image(images, count, i), channels_));
      answers.append(reinterpret_cast<const char*>(given.data()), given.size() * sizeof(float));
    }
    return Json::of(base64(answers));
  }

  // Each image's class in four hexadecimal digits.
  std::string classes(Network& network, std::string_view images, size_t& correct) const {
    const std::string_view labels = bundle_.entry("slice/labels.u16");
    std::string digits;
    for (size_t i = 0; i < count_; ++i) {
      const auto& given = network.run(network.feed(image(images, count_, i), channels_));
      const auto best = static_cast<unsigned>(std::max_element(given.begin(), given.end()) - given.begin());
      const auto label = static_cast<unsigned char>(labels[2 * i]) | static_cast<unsigned char>(labels[2 * i + 1]) << 8;
      correct += best == static_cast<unsigned>(label);
      char text[12];
      std::snprintf(text, sizeof text, "%04x", best & 0xFFFF);
      digits += text;
    }
    return digits;
  }

  Json timed(std::vector<Json>& rows, Progress& progress) {
    std::vector<size_t> own;
    std::string names;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].at("error").kind != Json::kNull) continue;
      own.push_back(i);
      names += (names.empty() ? "" : ", ") + rows[i].at("file").words();
    }
    Json groups = Json::list(), group = Json::object();
    if (own.empty()) return groups;
    say("timing " + names);
    try {
      const Json times = progress.once("time " + names, [&] { return apart([&] { return time(own); }); });
      for (size_t i = 0; i < own.size(); ++i) rows[own[i]].put("latency", times.at("files").entries().at(i));
      groups.items.push_back(group.put("target", Json::of(kTarget)).put("blocks", times.at("blocks")));
    } catch (const Refused&) {
      throw;
    } catch (const std::runtime_error& error) {
      for (const size_t i : own) rows[i].put("error", Json::of(std::string("while it was timed: ") + error.what()));
    }
    return groups;
  }

  Json time(const std::vector<size_t>& own) const {
    std::vector<std::unique_ptr<Network>> networks;
    std::vector<std::string> images;
    std::vector<std::function<void()>> calls;
    for (const size_t index : own) {
      networks.push_back(std::make_unique<Network>(bundle_, *files_[index], options_.threads));
      images.push_back(networks.back()->feed(image(bundle_.entry("slice/images.u8"), count_, 0), channels_));
    }
    for (size_t i = 0; i < own.size(); ++i) calls.emplace_back([&, i] { networks[i]->run(images[i]); });
    // A sustained measurement shares its minutes among the files; the others take theirs for each.
    const double share = options_.mode.name == "sustained" ? static_cast<double>(own.size()) : 1;
    Json times = Meter(calls, options_.mode, share, cpus_).measure();
    for (auto& network : networks) network.release();  // never taken down
    return times;
  }

  Json document(const std::vector<Json>& rows, const Json& groups) const {
    const std::string governor =
        cpus_.empty() ? "" : text_of(kCpus + std::to_string(cpus_[0]) + "/cpufreq/scaling_governor");
    Json document = Json::object(), list = Json::list();
    list.items = rows;
    document.put("schema", Json::of(1LL)).put("kind", Json::of("device")).put("bundle_sha256", Json::of(bundle_.digest));
    document.put("runner", Json::of(kRunner)).put("finished", Json::of(true)).put("mode", mode()).put("device", device_);
    document.put("governor", governor.empty() ? Json() : Json::of(governor));
    document.put("threads", Json::of(static_cast<long long>(options_.threads))).put("pinned", pinned());
    return document.put("groups", groups).put("rows", list);
  }

  const Bundle& bundle_;
  const Options& options_;
  Json device_;
  std::vector<int> allowed_before_ = allowed(), cpus_;
  std::vector<const Json*> files_;
  size_t count_ = 0, channels_ = 0;
};

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Bundle bundle(options.bundle);
  std::vector<std::string> names;
  std::string all;
  for (const Json& file : bundle.manifest.at("files").entries()) {
    names.push_back(file.at("name").words());
    all += (all.empty() ? "" : ", ") + names.back();
    if (options.list)
      std::printf("%s  %s %s\n", names.back().c_str(), file.at("target").words().c_str(), file.at("precision").words().c_str());
  }
  if (options.list) return 0;
  for (const std::string& name : options.only) {
    if (std::find(names.begin(), names.end(), name) == names.end())
      throw Refused("--only " + name + ": wanted one of " + all, kWrongRequest);
  }
  return Session(bundle, options).run();
}

}  // namespace
}  // namespace edgewise

int main(int argc, char** argv) {
  int status = 0;
  try {
    status = edgewise::run(argc, argv);
  } catch (const edgewise::Refused& error) {
    edgewise::say(std::string("error: ") + error.what());
    status = error.status;
  } catch (const std::exception& error) {
    edgewise::say(std::string("error: ") + error.what());
    status = edgewise::kFailed;
  }
  std::fflush(nullptr);
  _exit(status);
}
