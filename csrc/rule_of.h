// A rule by its name and options, as Python says them.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <string_view>

#include "combinations.h"

namespace gru_fast {

using RuleOptions = std::array<double, 4>;

inline Rule rule_of(std::string_view name, const RuleOptions& options) {
  std::string known;
  for (size_t i = 0; i < std::size(kRuleNames); ++i) {
    if (name == kRuleNames[i]) {
      Rule rule{static_cast<RuleId>(i), {}};
      std::copy(options.begin(), options.end(), rule.options);
      return rule;
    }
    known += (i > 0 ? ", " : "") + std::string(kRuleNames[i]);
  }
  throw pybind11::value_error("rule: expected one of " + known + ", got \"" + std::string(name) + "\"");
}

}  // namespace gru_fast
