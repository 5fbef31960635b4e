#pragma once
// The second factor at the terminal: where codes come from, and asking for one when the server wants it. Blocking.
#include <functional>
#include <string>

#include "base/result.h"
#include "wire/json.h"

namespace muster::cli {

struct Proof {
  std::string password, code;  // empty: to be asked for
};
// The first lines of the files that are named; where both are the same one, its first two lines.
Result<Proof> read_proof(const std::string& password_file, const std::string& code_file);
// `call` with the code; where the server wants one or another one, with what `ask` gives, three times at most.
Result<wire::Json> call_with_code(const std::function<Result<wire::Json>(const std::string& code)>& call,
                                  std::string code, const std::function<Result<std::string>()>& ask);
Result<std::string> ask_code();  // six digits of the app, or a recovery code

}  // namespace muster::cli
