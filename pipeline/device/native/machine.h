// What a device tells of itself, as a bundle's runner in Python asks it: nothing where it does not tell.

#pragma once

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "bundle.h"

namespace edgewise {

inline const char* const kCpus = "/sys/devices/system/cpu/cpu";

// Printable letters of a small file, or of a command's output, without those at its ends.
inline std::string trimmed(const std::string& text) {
  std::string out;
  for (const char letter : text) out += letter >= ' ' && letter < 127 ? letter : letter == '\n' ? '\n' : ' ';
  const size_t start = out.find_first_not_of(" \n"), end = out.find_last_not_of(" \n");
  return start == std::string::npos ? "" : out.substr(start, end - start + 1);
}

inline std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return trimmed({std::istreambuf_iterator<char>(file), {}});
}

inline std::optional<long long> number_of(const std::string& path) {
  const std::string text = text_of(path);
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  return text.empty() || *end != 0 ? std::nullopt : std::optional<long long>(value);
}

// A property of an Android system.
inline std::string property(const std::string& name) {
  if (access("/system/bin/getprop", X_OK) != 0) return "";
  FILE* pipe = popen(("/system/bin/getprop " + name).c_str(), "r");
  if (pipe == nullptr) return "";
  char line[200] = {};
  const bool said = std::fgets(line, sizeof line, pipe) != nullptr;
  pclose(pipe);
  return said ? trimmed(line) : "";
}

// What stands behind ``key`` and a colon or an equals sign at the beginning of a line; empty where no line has it.
inline std::string value_of(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t place = line.find_first_of(":=");
    if (place != std::string::npos && trimmed(line.substr(0, place)) == key) {
      std::string value = trimmed(line.substr(place + 1));
      if (value.size() > 1 && value.front() == '"' && value.back() == '"') value = value.substr(1, value.size() - 2);
      return value;
    }
  }
  return "";
}

inline Json optional_number(std::optional<long long> value) { return value ? Json::of(*value) : Json(); }

// The processors that this process may use.
inline std::vector<int> allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

inline std::optional<long long> max_khz(int cpu) {
  return number_of(kCpus + std::to_string(cpu) + "/cpufreq/cpuinfo_max_freq");
}

// How fast each processor is beside the others: the kernel's measure of its capacity, else its fastest clock; empty where
// one of them does not tell.
inline std::map<int, long long> speeds(const std::vector<int>& cpus) {
  for (const char* name : {"/cpu_capacity", "/cpufreq/cpuinfo_max_freq"}) {
    std::map<int, long long> values;
    for (const int cpu : cpus) {
      if (const auto value = number_of(kCpus + std::to_string(cpu) + name)) values[cpu] = *value;
    }
    if (!values.empty() && values.size() == cpus.size()) return values;
  }
  return {};
}

// Processors of "0,2-3"; none for what is no such list.
inline std::vector<int> listed(const std::string& text) {
  std::vector<int> cpus;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int low = 0, high = 0, used = 0;
    part = trimmed(part);
    if (std::sscanf(part.c_str(), "%d-%d%n", &low, &high, &used) != 2 || used != static_cast<int>(part.size())) {
      used = 0;
      if (std::sscanf(part.c_str(), "%d%n", &low, &used) != 1 || used != static_cast<int>(part.size())) return {};
      high = low;
    }
    if (low < 0 || high > 4096) return {};
    for (int cpu = low; cpu <= high; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

// Processors, those that share a core with an earlier one last, before that the fastest first.
inline std::vector<int> by_speed(std::vector<int> cpus) {
  const auto speed = speeds(cpus);
  const std::set<int> have(cpus.begin(), cpus.end());
  std::map<int, bool> second;
  for (const int cpu : cpus) {
    for (const int other : listed(text_of(kCpus + std::to_string(cpu) + "/topology/thread_siblings_list")))
      second[cpu] = second[cpu] || (other < cpu && have.count(other) != 0);
  }
  std::stable_sort(cpus.begin(), cpus.end(), [&](int a, int b) {
    if (second[a] != second[b]) return static_cast<bool>(second[b]);
    return !speed.empty() && speed.at(a) > speed.at(b);
  });
  return cpus;
}

// The processors to be pinned to. Throws Refused for a choice that the device does not have.
inline std::vector<int> choose(const std::string& pin, size_t threads) {
  std::vector<int> have = allowed(), chosen;
  if (pin == "big" || pin == "little") {
    const auto speed = speeds(have);
    std::set<long long> seen;
    for (const auto& entry : speed) seen.insert(entry.second);
    if (seen.size() < 2)
      throw Refused("--pin big or little: this device's processors do not differ in speed", kWrongRequest);
    const long long wanted = pin == "big" ? *seen.rbegin() : *seen.begin();
    for (const auto& entry : speed) {
      if (entry.second == wanted) chosen.push_back(entry.first);
    }
  } else if (!pin.empty()) {
    chosen = listed(pin);
    const bool there = std::all_of(chosen.begin(), chosen.end(), [&](int cpu) {
      return std::find(have.begin(), have.end(), cpu) != have.end();
    });
    if (chosen.empty() || !there)
      throw Refused("--pin " + pin + ": wanted some of this device's processors, big or little", kWrongRequest);
    return chosen;
  } else {
    chosen = by_speed(have);
  }
  if (chosen.size() > threads) chosen.resize(threads);
  return chosen;
}

inline void pin_to(const std::vector<int>& cpus) {
  if (cpus.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

inline std::optional<long long> clock_khz(const std::vector<int>& cpus) {
  long long sum = 0, count = 0;
  for (const int cpu : cpus) {
    if (const auto value = number_of(kCpus + std::to_string(cpu) + "/cpufreq/scaling_cur_freq")) sum += *value, ++count;
  }
  return count ? std::optional<long long>(sum / count) : std::nullopt;
}

// The hottest zone, in degrees Celsius.
inline Json temperature_c() {
  double hottest = 0;
  for (int zone = 0; zone < 128; ++zone) {
    const auto value = number_of("/sys/class/thermal/thermal_zone" + std::to_string(zone) + "/temp");
    if (!value) continue;
    const double degrees = *value > 1000 ? *value / 1000.0 : static_cast<double>(*value);
    if (degrees > 0 && degrees < 150) hottest = std::max(hottest, degrees);
  }
  return hottest > 0 ? Json::of(hottest) : Json();
}

// Ticks that the host of a virtual machine took away so far.
inline std::optional<long long> stolen() {
  long long ticks[8] = {};
  const std::string line = text_of("/proc/stat");
  const int count = std::sscanf(line.c_str(), "cpu %lld %lld %lld %lld %lld %lld %lld %lld", &ticks[0], &ticks[1], &ticks[2],
                                &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7]);
  return count == 8 ? std::optional<long long>(ticks[7]) : std::nullopt;
}

// The most main memory this process has held, in bytes.
inline std::optional<long long> high_water() {
  const std::string text = value_of(text_of("/proc/self/status"), "VmHWM");
  return text.empty() ? std::nullopt : std::optional<long long>(1024 * std::strtoll(text.c_str(), nullptr, 10));
}

inline void set_back_high_water() { std::ofstream("/proc/self/clear_refs") << "5"; }

// Which emulator this runs under; empty on a real processor. An Arm program that sees an x86 processor's cpuinfo, or none
// at all, is emulated: the file is then the host kernel's.
inline std::string emulator(const std::string& machine) {
  const char* said = std::getenv("EDGEWISE_EMULATED");
  if (said != nullptr && *said != 0) return std::string(said).substr(0, 80);
  const bool arm = machine == "aarch64" || machine == "arm64" || machine.rfind("armv", 0) == 0;
  const std::string info = text_of("/proc/cpuinfo");
  return arm && (info.empty() || info.find("vendor_id") != std::string::npos) ? "an emulator that it does not name" : "";
}

inline Json cores() {
  std::map<int, std::string> parts;
  std::istringstream lines(text_of("/proc/cpuinfo"));
  int current = -1;
  for (std::string line; std::getline(lines, line);) {
    const std::string processor = value_of(line, "processor"), part = value_of(line, "CPU part");
    if (!processor.empty() && std::isdigit(static_cast<unsigned char>(processor[0]))) current = std::atoi(processor.c_str());
    if (!part.empty()) parts[current] = part;
  }
  Json list = Json::list();
  for (const int cpu : allowed()) {
    Json core = Json::object();
    core.put("id", Json::of(static_cast<long long>(cpu))).put("max_khz", optional_number(max_khz(cpu)));
    core.put("part", parts.count(cpu) ? Json::of(parts[cpu]) : Json());
    list.items.push_back(core);
  }
  return list;
}

inline Json describe() {
  utsname name{};
  uname(&name);
  const std::string info = text_of("/proc/cpuinfo"), machine = name.machine, tree = text_of("/proc/device-tree/model");
  const std::string android = property("ro.build.version.release"), release = text_of("/etc/os-release");
  std::string cpu = value_of(info, "model name");
  for (const std::string& other : {value_of(info, "Hardware"), property("ro.soc.model"), tree, machine}) {
    if (cpu.empty()) cpu = other;
  }
  std::string os = android.empty() ? value_of(release, "PRETTY_NAME") : "Android " + android;
  if (os.empty()) os = std::string(name.sysname) + " " + name.release;
  const std::string memory = value_of(text_of("/proc/meminfo"), "MemTotal"), emulated = emulator(machine);
  Json device = Json::object();
  device.put("name", Json::of(trimmed(name.nodename)));
  device.put("model", Json::of(tree.empty() ? property("ro.product.model") : tree));
  device.put("os", Json::of(os)).put("kernel", Json::of(trimmed(name.release))).put("machine", Json::of(machine));
  device.put("cpu", Json::of(cpu)).put("cores", cores());
  device.put("memory_bytes", memory.empty() ? Json() : Json::of(1024 * std::strtoll(memory.c_str(), nullptr, 10)));
  device.put("emulated", emulated.empty() ? Json() : Json::of(emulated));
  return device;
}

}  // namespace edgewise
