// A test program in one header: TEST(name) { CHECK(condition); CHECK_EQ(actual, expected); }.
// Each .cpp of this folder is a program of its own; it lists what failed and exits with 1 then.
#pragma once

#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures_of_test() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// A check inside a loop over every code fails thousands of times: the first few say enough.
constexpr int kReportedFailures = 5;

inline void fail(const char* file, int line, const std::string& text) {
  if (++failures_of_test() <= kReportedFailures)
    std::cout << file << ":" << line << ": " << text << std::endl;
}

// int8_t and uint8_t as numbers rather than as characters.
template <typename T>
auto printable(const T& value) {
  if constexpr (sizeof(T) == 1)
    return static_cast<int>(value);
  else
    return value;
}

template <typename Actual, typename Expected>
void equal(const char* file, int line, const char* what, const Actual& actual,
           const Expected& expected) {
  if (actual == expected) return;
  std::ostringstream text;
  text.precision(17);
  text << what << " is " << printable(actual) << ", not " << printable(expected);
  fail(file, line, text.str());
}

inline int run() {
  int failed = 0;
  for (const Test& test : tests()) {
    failures_of_test() = 0;
    test.body();
    if (failures_of_test() == 0) continue;
    ++failed;
    std::printf("FAILED %s: %d check(s)\n", test.name, failures_of_test());
  }
  std::printf("%d of %d tests passed\n", static_cast<int>(tests().size()) - failed,
              static_cast<int>(tests().size()));
  // A program without tests has tested nothing.
  return failed == 0 && !tests().empty() ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                               \
  static void name();                                            \
  static const check::Registration registration_##name(#name, name); \
  static void name()

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition " is false"); \
  } while (0)

#define CHECK_EQ(actual, expected) \
  check::equal(__FILE__, __LINE__, #actual, (actual), (expected))

int main() { return check::run(); }
