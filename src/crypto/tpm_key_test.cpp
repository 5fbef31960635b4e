#include "crypto/tpm_key.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "crypto/cert.h"
#include "crypto/hash.h"
#include "crypto/sign.h"

namespace muster::crypto {
namespace {

// A TPM of its own for the tests: swtpm on two ports of this machine. Skipped where it is not installed.
class Tpm : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("command -v swtpm >/dev/null") != 0) GTEST_SKIP() << "swtpm is not installed";
    char name[] = "/tmp/tpm-XXXXXX";
    folder_ = mkdtemp(name);
    port_ = 20'000 + static_cast<int>(getpid() % 20'000) * 2;
    start(folder_);
  }
  void TearDown() override {
    stop();
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  void start(const std::string& folder) {
    const std::string server = "type=tcp,port=" + std::to_string(port_) + ",disconnect=true";
    const std::string control = "type=tcp,port=" + std::to_string(port_ + 1), state = "dir=" + folder;
    pid_ = fork();
    if (pid_ == 0) {
      execlp("swtpm", "swtpm", "socket", "--tpm2", "--tpmstate", state.c_str(), "--server", server.c_str(), "--ctrl",
             control.c_str(), "--flags", "not-need-init,startup-clear", nullptr);
      _exit(127);
    }
  }
  void stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  std::string where() const { return "swtpm:host=127.0.0.1,port=" + std::to_string(port_); }
  Result<TpmKey> made() const {
    auto key = TpmKey::create(where());
    for (int i = 0; i < 50 && !key.ok(); ++i) {
      std::this_thread::sleep_for(Millis(100));  // it is about to listen
      key = TpmKey::create(where());
    }
    return key;
  }
  std::string folder_;
  int port_ = 0;
  pid_t pid_ = -1;
};

TEST_F(Tpm, AKeyOfItSignsAndAnotherOneDoesNotTakeIt) {
  const auto key = made();
  ASSERT_TRUE(key.ok()) << key.error().message;
  EXPECT_NE(key->wrapped_pem().find("TSS2 PRIVATE KEY"), std::string::npos);
  const Bytes message = to_bytes("nonce");
  const auto signature = key->sign(kTpmHelloDomain, message);
  ASSERT_TRUE(signature.ok()) << signature.error().message;
  EXPECT_TRUE(tpm_signed(key->public_der(), kTpmHelloDomain, message, *signature));
  EXPECT_FALSE(tpm_signed(key->public_der(), kTpmEnrolDomain, message, *signature)) << "for another purpose";
  EXPECT_FALSE(tpm_signed(key->public_der(), kTpmHelloDomain, to_bytes("other"), *signature));
  Bytes damaged = *signature;
  damaged.back() ^= 1;
  EXPECT_FALSE(tpm_signed(key->public_der(), kTpmHelloDomain, message, damaged));

  const auto again = TpmKey::load(key->wrapped_pem(), where());
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(again->public_der(), key->public_der());
  EXPECT_TRUE(tpm_signed(key->public_der(), kTpmHelloDomain, message, *again->sign(kTpmHelloDomain, message)));

  // The file on another machine: its TPM cannot unwrap it.
  stop();
  const std::string other = folder_ + "/other";
  std::filesystem::create_directories(other);
  start(other);
  ASSERT_TRUE(made().ok());
  const auto stolen = TpmKey::load(key->wrapped_pem(), where());
  EXPECT_TRUE(!stolen.ok() || !stolen->sign(kTpmHelloDomain, message).ok());
}

TEST(TpmCertificate, IsBoundAndSaysToWhat) {
  const WallTime now{1'800'000'000'000};
  const KeyAndCert ca = create_ca("Muster CA", now).value();
  const auto device = SigningKey::generate();
  const Digest digest = sha256(to_bytes("a public key"));
  const Bytes tpm(digest.begin(), digest.end());
  const auto bound = issue_device_certificate(ca, device.public_key(), "node-12", now, Millis(86'400'000), tpm);
  ASSERT_TRUE(bound.ok());
  const auto read = verify_device_certificate(*bound, ca.cert_pem, now);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->node_id, "node-12");
  EXPECT_EQ(read->tpm, tpm);
  const auto plain = issue_device_certificate(ca, device.public_key(), "node-12", now);
  EXPECT_TRUE(verify_device_certificate(*plain, ca.cert_pem, now)->tpm.empty());
  const auto odd = issue_device_certificate(ca, device.public_key(), "node-12", now, Millis(86'400'000), Bytes(31, 1));
  EXPECT_FALSE(verify_device_certificate(*odd, ca.cert_pem, now).ok());
}

TEST(TpmCertificate, NothingButAP256KeyPasses) {
  const Bytes message = to_bytes("m");
  EXPECT_FALSE(tpm_signed({}, kTpmHelloDomain, message, {}));
  EXPECT_FALSE(tpm_signed(to_bytes("no key"), kTpmHelloDomain, message, Bytes(70, 1)));
  EXPECT_FALSE(tpm_signed(Bytes(kTpmPublicMax + 1, 0x30), kTpmHelloDomain, message, Bytes(70, 1)));
}

}  // namespace
}  // namespace muster::crypto
