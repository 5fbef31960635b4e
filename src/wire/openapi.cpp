#include "wire/openapi.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>

#include "muster/v1/api.pb.h"
#include "wire/contract.h"
#include "wire/json.h"

namespace muster::wire {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

Json json_text(std::string value) {
  return Json::string(std::move(value));
}
Json type(std::string name) {
  Json j = Json::object();
  j.set("type", json_text(std::move(name)));
  return j;
}
Json reference(const std::string& message) {
  Json j = Json::object();
  j.set("$ref", json_text("#/components/schemas/" + message));
  return j;
}

Json scalar_schema(const FieldDescriptor* field) {
  Json schema;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      schema = type("integer");
      schema.set("format", json_text("int32"));
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      schema = type("integer");
      schema.set("minimum", Json::number(std::int64_t{0}));
      schema.set("maximum", Json::number(std::int64_t{4294967295}));
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      schema = type("string");
      schema.set("format", json_text("int64"));
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      schema = type("string");
      schema.set("format", json_text("uint64"));
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      schema = type("number");
      schema.set("format", json_text("double"));
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      schema = type("boolean");
      break;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      schema = reference(field->message_type()->name());
      break;
    default:
      schema = type("string");
  }
  return schema;
}

Json field_schema(const FieldDescriptor* field) {
  if (field->is_map()) {
    Json schema = type("object");
    schema.set("additionalProperties", scalar_schema(field->message_type()->map_value()));
    return schema;
  }
  if (!field->is_repeated()) return scalar_schema(field);
  Json schema = type("array");
  schema.set("items", scalar_schema(field));
  return schema;
}

Json message_schema(const Descriptor* message) {
  Json schema = type("object");
  Json properties = Json::object();
  for (int i = 0; i < message->field_count(); ++i)
    properties.set(message->field(i)->json_name(), field_schema(message->field(i)));
  schema.set("properties", std::move(properties));
  schema.set("additionalProperties", Json::boolean(false));
  return schema;
}

Json parameter(const std::string& name, const std::string& in, Json schema, bool required, const std::string& about) {
  Json p = Json::object();
  p.set("name", json_text(name))
      .set("in", json_text(in))
      .set("required", Json::boolean(required))
      .set("schema", std::move(schema));
  if (!about.empty()) p.set("description", json_text(about));
  return p;
}

Json content(const std::string& media, Json schema) {
  Json wrapped = Json::object(), out = Json::object();
  wrapped.set("schema", std::move(schema));
  out.set(media, std::move(wrapped));
  return out;
}

Json parameters(const Operation& op, const Descriptor* request) {
  Json out = Json::array();
  const bool mutation = op.method != "GET";
  for (int i = 0; i < request->field_count(); ++i) {
    const auto* field = request->field(i);
    if (op.path.find("{" + field->name() + "}") != std::string::npos) {
      out.push(parameter(field->json_name(), "path", scalar_schema(field), true,
                         "An id, or a name in the caller's project"));
    } else if (!mutation && op.body.empty()) {
      out.push(parameter(field->name(), "query", field_schema(field), false,
                         field->name() == "filter" ? "key=value pairs, comma separated: state=running,name=x" : ""));
    }
  }
  if (op.name == "ExecCluster") {
    Json list = type("array");
    list.set("items", type("string"));
    out.push(parameter("argv", "query", std::move(list), true, "The command; repeat the key for each word"));
    for (const char* name : {"tty", "rows", "cols"}) out.push(parameter(name, "query", type("integer"), false, ""));
    out.push(parameter("slot", "query", type("string"), false, "A slot id; the head when absent"));
  }
  if (op.name == "ForwardCluster") {
    out.push(parameter("port", "query", type("integer"), true, "The TCP port on the slot's overlay address"));
    out.push(parameter("slot", "query", type("string"), false, "A slot id; the head when absent"));
  }
  if (op.name == "StreamEvents")
    out.push(parameter("Last-Event-ID", "header", type("string"), false, "Resume after this seq"));
  if (mutation) {
    if (op.name != "Login" && op.name != "BeginSso" && op.name != "FinishSso" && op.name != "EnrolTotp" &&
        op.name != "ConfirmTotp" && op.name != "DisableTotp" && op.name != "Enroll" && op.name != "PutBlob")
      out.push(parameter("Idempotency-Key", "header", type("string"), false,
                         "The same key and request within 24 hours is done once"));
  } else {
    out.push(parameter("min_seq", "query", type("string"), false, "Answer only from a state that holds this seq"));
  }
  return out;
}

Json responses(const Operation& op) {
  Json ok = Json::object();
  ok.set("description", json_text(op.summary));
  std::string status = "200";
  if (op.streams == "websocket") {
    status = "101";
  } else if (op.streams == "sse") {
    ok.set("content", content("text/event-stream", type("string")));
  } else if (op.streams == "text") {
    ok.set("content", content("text/plain", type("string")));
  } else {
    ok.set("content", content("application/json", reference(op.response)));
  }
  Json problem = Json::object(), out = Json::object();
  problem.set("$ref", json_text("#/components/responses/Problem"));
  out.set(status, std::move(ok));
  out.set("4XX", problem);
  out.set("5XX", problem);
  return out;
}

std::string build() {
  const auto* file = v1::ServerInfo::descriptor()->file();
  Json info = Json::object(), root = Json::object(), paths = Json::object(), schemas = Json::object();
  info.set("title", json_text("Muster")).set("version", json_text("v1"));
  info.set("description",
           json_text("Ray clusters from enrolled machines. int64 values are JSON strings; errors are problem "
                     "details (RFC 9457)."));
  for (int i = 0; i < file->message_type_count(); ++i) {
    const auto* message = file->message_type(i);
    if (message->name() != "Http") schemas.set(message->name(), message_schema(message));
  }
  for (const auto& op : operations()) {
    Json operation = Json::object();
    operation.set("operationId", json_text(op.name)).set("summary", json_text(op.summary));
    operation.set("parameters", parameters(op, file->FindMessageTypeByName(op.request)));
    if (!op.body.empty()) {
      Json body = Json::object();
      body.set("required", Json::boolean(true));
      body.set("content", op.body == "binary" ? content("application/octet-stream", type("string"))
                                              : content("application/json", reference(op.request)));
      operation.set("requestBody", std::move(body));
    }
    operation.set("responses", responses(op));
    if (op.name == "GetServer" || op.name == "Login" || op.name == "BeginSso" || op.name == "FinishSso" ||
        op.name == "Enroll")
      operation.set("security", Json::array());
    std::string method;
    for (const char c : op.method) method += static_cast<char>(c | 0x20);
    Json item = paths.find(op.path) ? *paths.find(op.path) : Json::object();
    item.set(method, std::move(operation));
    paths.set(op.path, std::move(item));
  }
  Json bearer = type("http"), schemes = Json::object(), problem = Json::object(), all = Json::object(),
       components = Json::object();
  bearer.set("scheme", json_text("bearer"));
  schemes.set("bearer", std::move(bearer));
  problem.set("description", json_text("What went wrong and what to do"))
      .set("content", content("application/problem+json", reference("Problem")));
  all.set("Problem", std::move(problem));
  components.set("schemas", std::move(schemas))
      .set("responses", std::move(all))
      .set("securitySchemes", std::move(schemes));
  Json need = Json::object(), security = Json::array();
  need.set("bearer", Json::array());
  security.push(std::move(need));
  root.set("openapi", json_text("3.1.0")).set("info", std::move(info)).set("security", std::move(security));
  root.set("paths", std::move(paths)).set("components", std::move(components));
  return root.dump(1);
}

}  // namespace

const std::string& openapi_json() {
  static const std::string document = build();
  return document;
}

}  // namespace muster::wire
