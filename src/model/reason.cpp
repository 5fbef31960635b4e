#include "model/reason.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace muster {
namespace {

constexpr std::array<std::pair<std::string_view, std::string_view>, 53> kSentences{{
    {"budget", "the cluster has cost what its budget allows; start it again with a larger one"},
    {"container.disk_reserve",
     "the machine's disk ran low and this lease used the most of it; use less, or ask for a "
     "machine with more disk"},
    {"container.exited", "the container ended by itself; the machine's owner sees its last output in the agent's log"},
    {"container.out_of_memory", "the container's main process was killed for memory; ask for more memory"},
    {"container.root_full",
     "the container wrote more into its root than the owner allows and began anew; write to "
     "/tmp/ray, or put the files into the image"},
    {"container.users",
     "the machine has no user ids left for another lease; its owner must give its engine more (/etc/subuid)"},
    {"container.workspace_full", "/tmp/ray is full; ask for more disk (resources: disk), or spill and keep less"},
    {"gpu.driver", "the machine's driver does not know a leased GPU; its owner must look at nvidia-smi"},
    {"gpu.toolkit", "the machine's container engine cannot hand out GPUs; its owner must install the NVIDIA toolkit"},
    {"image_moved", "the image's tag moved while the cluster started; this member takes what the first one took"},
    {"image_policy.denied", "an image policy denies this image; `muster images policy show` says which"},
    {"image_policy.no_digest", "an image policy wants images named by their digests; write IMAGE@sha256:..."},
    {"image_policy.not_allowed", "no image policy allows this image; `muster images policy show` lists what they do"},
    {"image_policy.unsigned", "an image policy wants a signature, and virtual environments have none"},
    {"image_probe.exited", "the image's Python ended at once; does the image have Python 3?"},
    {"image_probe.failed", "the image could not be examined; see the events"},
    {"image_probe.mixed_versions", "members have different versions of Ray or Python; all must have the same image"},
    {"image_probe.no_answer", "the image's Python did not answer within a minute; does the image have Python 3?"},
    {"image_probe.no_ray", "the image has no Python package named ray; take an image with Ray 2.54 or newer"},
    {"image_probe.no_token_auth",
     "this image's Ray knows no token authentication, so anybody in its network could use "
     "it; take an image with Ray 2.54 or newer"},
    {"image_probe.other_image",
     "a machine said it found another image than the one that was asked for; start the cluster again"},
    {"image_pull.denied",
     "the registry does not hand out this image; run `muster registry login REGISTRY`, then start "
     "the cluster again"},
    {"image_pull.disk_full", "the machine's disk is full; the image does not fit"},
    {"image_pull.failed", "the image could not be pulled; the machine's owner sees why in the agent's log"},
    {"image_pull.interrupted", "the connection to the registry broke again and again"},
    {"image_pull.not_found", "the registry has no image of that name and tag; check both"},
    {"image_pull.tls",
     "the machine does not trust the registry's certificate; use one of a public authority, or have "
     "the machine's owner install yours for his engine"},
    {"image_pull.unreachable", "the machine cannot reach the registry; is its name right, is it up, is it public?"},
    {"image_pull.wrong_architecture",
     "the image is for another kind of processor; name one for the machine's, or set "
     "muster.arch"},
    {"image_signature.denied",
     "the registry does not hand out the image's signatures; run `muster registry login REGISTRY`, then start the "
     "cluster again"},
    {"image_signature.missing", "nobody has signed this image, and an image policy wants it signed; `cosign sign` it"},
    {"image_signature.no_registry",
     "an image policy wants a signature, and this image was put on the machine by hand, where it has none"},
    {"image_signature.unreachable", "the machine cannot reach the registry to look for the image's signatures"},
    {"image_signature.wrong",
     "none of the keys of an image policy has signed exactly this image; sign it, or take one that is signed"},
    {"moved", "it moves to another machine so that a larger request fits; the cluster has the other worker already"},
    {"offer_ends",
     "the machine's owner wants it back, as his offer said when the machine was hired; the cluster gets another worker "
     "where there is one"},
    {"owner.hours", "the machine's owner allows no work at this hour"},
    {"owner.image", "the machine's owner does not allow this image"},
    {"owner.paused", "the machine's owner has paused it"},
    {"preempted", "it makes room for work of a better tier; the cluster gets another worker when there is room again"},
    {"runtime.unsupported", "the machine's owner does not allow this runtime"},
    {"setup.failed", "a setup command ended with an error; `muster status` shows its last lines"},
    {"slow_pair", "its ways to other members stayed below what the cluster asks for; another worker takes its place"},
    {"venv.disk_full", "the machine's disk is full; the virtual environment does not fit"},
    {"venv.failed", "the virtual environment could not be built; the machine's owner sees why in the agent's log"},
    {"venv.hash_mismatch", "the package index handed out something else than the lock says; nothing was installed"},
    {"venv.lock", "the lock of the virtual environment does not fit its reference"},
    {"venv.lock_missing", "the lock of the virtual environment is lost; start the cluster again"},
    {"venv.no_such_package",
     "the package index has no such versions as wheels for this machine, or they exclude each "
     "other; check the reference"},
    {"venv.python", "the machine has not the Python that the reference asks for"},
    {"venv.reference", "this is no reference of a virtual environment; write venv:ray==2.60.0,python3.11"},
    {"venv.tools", "the machine lacks what virtual environments need; `muster-agent doctor` there says what"},
    {"venv.unreachable", "the machine cannot reach the package index"},
}};

}  // namespace

std::string_view reason_sentence(std::string_view reason) {
  const std::string_view code = reason.substr(reason.rfind(':') + 1);
  const auto* found = std::lower_bound(kSentences.begin(), kSentences.end(), code,
                                       [](const auto& entry, std::string_view wanted) { return entry.first < wanted; });
  return found != kSentences.end() && found->first == code ? found->second : std::string_view();
}

std::string with_sentence(std::string_view reason) {
  const std::string_view sentence = reason_sentence(reason);
  return sentence.empty() ? std::string(reason) : fmt::format("{}: {}", reason, sentence);
}

}  // namespace muster
