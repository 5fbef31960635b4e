#include "server/signer.h"

#include "base/endian.h"
#include "server/journal_head.h"

namespace muster::server {
namespace {

constexpr std::size_t kViewFields = 6;  // before the history

Result<Bytes> only(Result<Signer::Fields> answer) {
  if (!answer.ok()) return answer.error();
  if (answer->size() != 1) return error(Code::Internal, "the signer gave an answer that is not understood");
  return std::move(answer->front());
}
Result<std::string> only_text(Result<Signer::Fields> answer) {
  const Bytes bytes = TRY(only(std::move(answer)));
  return as_string(bytes);
}
Result<Signed> signature_of(Result<Signer::Fields> answer) {
  if (!answer.ok()) return answer.error();
  if (answer->size() != 2) return error(Code::Internal, "the signer gave an answer that is not understood");
  return Signed{std::move((*answer)[0]), std::move((*answer)[1])};
}
Result<std::vector<crypto::AccessKey>> keys_of(Result<Signer::Fields> answer) {
  if (!answer.ok()) return answer.error();
  const Signer::Fields& fields = *answer;
  std::vector<crypto::AccessKey> out;
  for (std::size_t i = 0; i + 1 < fields.size(); i += 2) {
    const auto key = crypto::key32(fields[i]);
    if (!key) return error(Code::Internal, "the signer gave a public key that is none");
    out.push_back({*key, WallTime{static_cast<std::int64_t>(TRY(read_number(fields[i + 1])) & INT64_MAX)}});
  }
  return out;
}
Bytes key_field(const crypto::Key32& key) {
  return {key.begin(), key.end()};
}

}  // namespace

Bytes number_field(std::uint64_t value) {
  Bytes out(8);
  store_be64(out.data(), value);
  return out;
}
Result<std::uint64_t> read_number(const Bytes& field) {
  if (field.size() != 8) return error(Code::InvalidArgument, "a number of eight bytes is expected");
  return load_be64(field.data());
}

Signer::Fields view_fields(const SignerView& view) {
  Signer::Fields out{key_field(view.roster_key), key_field(view.command_key),
                     key_field(view.relay_key),  to_bytes(view.cas.ca.cert_pem),
                     to_bytes(view.cas.text),    number_field(view.cas.root_here ? 1 : 0)};
  if (!view.keys.empty()) {  // as a revision that there is not, which older programs pass over
    out.push_back(number_field(0));
    out.push_back(to_bytes(view.keys));
  }
  for (const Revision& each : view.cas.history) {
    out.push_back(number_field(each.number));
    out.push_back(to_bytes(each.text));
  }
  return out;
}

Result<SignerView> parse_view(const Signer::Fields& fields) {
  SignerView out;
  if (fields.size() < kViewFields || fields.size() % 2 != 0)
    return error(Code::Internal, "the signer gave an answer that is not understood");
  for (auto [key, at] : {std::pair(&out.roster_key, 0u), {&out.command_key, 1u}, {&out.relay_key, 2u}}) {
    const auto read = crypto::key32(fields[at]);
    if (!read) return error(Code::Internal, "the signer gave a public key that is none");
    *key = *read;
  }
  out.cas = TRY(ca_set(as_string(fields[3]), as_string(fields[4])));
  out.cas.root_here = TRY(read_number(fields[5])) != 0;
  for (std::size_t i = kViewFields; i < fields.size(); i += 2) {
    const std::uint64_t number = TRY(read_number(fields[i]));
    if (number == 0)
      out.keys = as_string(fields[i + 1]);
    else
      out.cas.history.push_back({number, as_string(fields[i + 1])});
  }
  return out;
}

Result<SignerView> Signer::view() {
  return parse_view(TRY(ask(SignOp::View, {})));
}
Result<std::string> Signer::device_certificate(NodeId node, const crypto::Key32& device, Millis lifetime,
                                               ByteView tpm) {
  Fields fields{number_field(node.value), key_field(device),
                number_field(static_cast<std::uint64_t>(lifetime.count()))};
  if (!tpm.empty()) fields.emplace_back(tpm.begin(), tpm.end());  // a signer of before knows three
  return only_text(ask(SignOp::Device, fields));
}
Result<std::string> Signer::server_certificate(crypto::ServerRole role, std::string_view request_pem) {
  return only_text(ask(SignOp::Server, {number_field(static_cast<std::uint64_t>(role)), to_bytes(request_pem)}));
}
Result<crypto::MachineProof> Signer::machine_proof(NodeId node, const crypto::Key32& device) {
  const Bytes bytes = TRY(only(ask(SignOp::Proof, {number_field(node.value), key_field(device)})));
  auto proofs = TRY(crypto::decode_machine_proofs(bytes, 1));
  if (proofs.size() != 1) return error(Code::Internal, "the signer gave an answer that is not understood");
  return std::move(proofs.front());
}
Result<Signed> Signer::roster(ByteView bytes) {
  return signature_of(ask(SignOp::Roster, {Bytes(bytes.begin(), bytes.end())}));
}
Result<Signed> Signer::order(ByteView bytes) {
  return signature_of(ask(SignOp::Order, {Bytes(bytes.begin(), bytes.end())}));
}
Result<Bytes> Signer::relay_token(const overlay::RelayToken& token) {
  return only(ask(SignOp::RelayToken, {to_bytes(token.relay), number_field(token.cluster), key_field(token.overlay_key),
                                       number_field(static_cast<std::uint64_t>(token.not_after.ms))}));
}
Result<wire::HeadView> Signer::head(std::uint64_t incarnation, std::uint64_t seq, ByteView hash) {
  const std::string json = TRY(
      only_text(ask(SignOp::Head, {number_field(incarnation), number_field(seq), Bytes(hash.begin(), hash.end())})));
  return parse_head(json);
}
Result<std::string> Signer::access_token(PrincipalId account, TokenId session, Millis lifetime) {
  return only_text(ask(SignOp::AccessToken, {number_field(account.value), number_field(session.value),
                                             number_field(static_cast<std::uint64_t>(lifetime.count()))}));
}
Result<std::vector<crypto::AccessKey>> Signer::access_keys() {
  return keys_of(ask(SignOp::AccessKeys, {}));
}
Result<std::vector<crypto::AccessKey>> Signer::workload_keys() {
  return keys_of(ask(SignOp::WorkloadKeys, {}));
}
Result<std::string> Signer::workload_token(const WorkloadWanted& wanted) {
  Fields fields{to_bytes(wanted.issuer),
                to_bytes(wanted.org_name),
                to_bytes(wanted.project_name),
                to_bytes(wanted.cluster_name),
                number_field(wanted.org.value),
                number_field(wanted.project.value),
                number_field(wanted.cluster.value),
                number_field(wanted.lease.value),
                number_field(wanted.job.value),
                number_field(static_cast<std::uint64_t>(wanted.lifetime.count()))};
  for (const std::string& audience : wanted.audiences) fields.push_back(to_bytes(audience));
  return only_text(ask(SignOp::WorkloadToken, fields));
}
Status Signer::behind(const Behind& behind, SignOp which) {
  Fields fields{number_field(behind.revision)};
  for (const std::string& machine : behind.machines) fields.push_back(to_bytes(machine));
  TRY(ask(which, fields));
  return {};
}

}  // namespace muster::server
