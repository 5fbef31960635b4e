#pragma once
// Prices for people. Pure.
#include <string>

#include "cli/table.h"
#include "model/offer.h"

namespace muster::cli {

// "1.20 EUR", of two fields of the API; empty when nothing is asked.
inline std::string price_text(const wire::Json& micros, const wire::Json& currency) {
  return micros.integer() == 0 ? std::string() : money_text(micros.integer(), clean(currency.text()));
}
// "1.20 EUR, 3.00 credits", of a list of Money.
inline std::string sum_text(const wire::Json& list) {
  std::string out;
  for (const auto& each : list.items())
    out += (out.empty() ? "" : ", ") + money_text(each["micros"].integer(), clean(each["currency"].text()));
  return out;
}

}  // namespace muster::cli
