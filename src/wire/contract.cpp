#include "wire/contract.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <memory>

#include "base/bytes.h"
#include "base/http_status.h"
#include "muster/v1/api.pb.h"
#include "wire/message_json.h"

namespace muster::wire {

const std::vector<Operation>& operations() {
  static const std::vector<Operation> table = [] {
    std::vector<Operation> out;
    const auto* service = v1::ServerInfo::descriptor()->file()->FindServiceByName("Api");
    MUSTER_CHECK(service != nullptr);
    for (int i = 0; i < service->method_count(); ++i) {
      const auto* method = service->method(i);
      const v1::Http& http = method->options().GetExtension(v1::http);
      out.push_back({method->name(), http.method(), http.path(), http.summary(), http.body(), http.streams(),
                     method->input_type()->name(), method->output_type()->name()});
    }
    return out;
  }();
  return table;
}

const Operation* find_operation(std::string_view name) {
  for (const auto& operation : operations()) {
    if (operation.name == name) return &operation;
  }
  return nullptr;
}

Status check_json(std::string_view message, const Json& value) {
  const auto* descriptor = v1::ServerInfo::descriptor()->file()->FindMessageTypeByName(std::string(message));
  if (descriptor == nullptr) return error(Code::Internal, fmt::format("the contract has no message {}", message));
  const std::unique_ptr<google::protobuf::Message> out(
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(descriptor)->New());
  return read_message(value, *out);
}

namespace {
std::string_view title(Code code) {
  switch (code) {
    case Code::InvalidArgument:
      return "The request is not valid";
    case Code::Unauthenticated:
      return "Log in first";
    case Code::PermissionDenied:
      return "Not allowed";
    case Code::NotFound:
      return "Not found";
    case Code::AlreadyExists:
      return "It exists already";
    case Code::FailedPrecondition:
      return "Not possible in this state";
    case Code::ResourceExhausted:
      return "Too much at once";
    case Code::Unavailable:
      return "Try again later";
    case Code::DataLoss:
      return "Stored data is damaged";
    case Code::Internal:
      return "A fault of the server";
    case Code::Cancelled:
      return "Cancelled";
    case Code::DeadlineExceeded:
      return "It took too long";
    case Code::Aborted:
      return "Somebody else was faster";
    case Code::TooLarge:
      return "Too large";
    case Code::Unsupported:
      return "Not supported";
  }
  return "Error";
}
}  // namespace

std::string problem_json(int status, const Error& error, std::string_view instance) {
  v1::Problem problem;
  problem.set_type(fmt::format("urn:muster:problem:{}", code_name(error.code)));
  problem.set_title(std::string(title(error.code)));
  problem.set_status(status);
  // A message may quote what a peer sent; the answer stays valid UTF-8.
  problem.set_detail(valid_utf8(error.message) ? error.message : "the request holds bytes that are not valid UTF-8");
  problem.set_code(std::string(code_name(error.code)));
  problem.set_field(valid_utf8(error.field) ? error.field : "");
  problem.set_instance(std::string(instance));
  return write_message(problem);
}
std::string problem_json(const Error& error, std::string_view instance) {
  return problem_json(http_status(error.code), error, instance);
}

}  // namespace muster::wire
