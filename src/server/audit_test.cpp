// The audit trail without a network: the scan, signed heads against tampered journals, the log of refusals.
#include "server/audit.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "engine/tools.h"
#include "journal/entry.h"
#include "server/access_log.h"
#include "server/journal_head.h"
#include "server/test_store.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("muster-audit-test-" + std::to_string(::getpid()));
  DataDir dir{path.string()};
  Folder() {
    fs::remove_all(path);
    fs::create_directories(path / "keys");
  }
  ~Folder() { fs::remove_all(path); }
};
std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void append(TestStore& store, const std::vector<Bytes>& entries) {
  journal::AppendRequest request;
  const auto tail = *store.tail();
  request.leader_epoch = tail.leader_epoch, request.prev_seq = tail.seq, request.prev_hash = tail.hash;
  request.entries = std::make_shared<const std::vector<Bytes>>(entries);
  store.append(std::move(request), [](const journal::AppendResult& result) {
    ASSERT_EQ(result.outcome, journal::AppendOutcome::Committed) << result.message;
  });
}
// `count` organisations, one a second, each made by account usr-(n % 5 + 1) of organisation n % 3 + 1.
std::shared_ptr<TestStore> world(std::uint64_t count, std::uint64_t renamed = 0) {
  auto store = std::make_shared<TestStore>();
  Bytes hash = journal::genesis_hash();
  std::vector<Bytes> entries;
  for (std::uint64_t n = 1; n <= count; ++n) {
    journal::Entry entry;
    entry.seq = n;
    entry.wall = WallTime{static_cast<std::int64_t>(1'000'000 + n * 1000)};
    entry.actor.principal = PrincipalId{n % 5 + 1}, entry.actor.org = OrgId{n % 3 + 1};
    entry.actor.role = Role::Operator, entry.actor.request_id = "req-" + std::to_string(n);
    entry.prev_hash = hash;
    const std::string name = (n == renamed ? "changed-" : "org-") + std::to_string(n);
    entry.event = control::encode(control::OrgCreated{Org{OrgId{n}, name, {}}}, 1);
    entries.push_back(*journal::encode(entry));
    hash = journal::hash_of(entries.back());
  }
  append(*store, entries);
  return store;
}
wire::HeadView head_of(const DataDir& dir, const journal::Store& store, std::uint64_t incarnation = 1) {
  const auto head = sign_head(dir, "srv-1", incarnation, *store.tail(), WallTime{1'700'000'000'000});
  EXPECT_TRUE(head.ok());
  return *head;
}

TEST(Audit, TimesAreReadAsTheyAreWritten) {
  for (const std::int64_t ms : {0LL, 1'764'408'037'123LL, 4'102'444'799'999LL})
    EXPECT_EQ(parse_utc(format_utc(WallTime{ms})), WallTime{ms});
  EXPECT_EQ(parse_utc("1970-01-01T00:00:01Z"), WallTime{1000});
  EXPECT_EQ(parse_utc("1970-01-01T00:00:00.5Z"), WallTime{500});
  for (const char* bad : {"", "now", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00",
                          "2026-01-01 00:00:00Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00.1x3Z"})
    EXPECT_FALSE(parse_utc(bad)) << bad;
}

class Trail : public ::testing::Test {
 protected:
  void SetUp() override {
    context_.store = world(1'200);
    engine::Runner::Options options;
    options.store = context_.store;
    auto runner = engine::Runner::start(std::move(options));
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    context_.runner = std::move(*runner);
    ASSERT_TRUE(context_.runner->wait_for(1'200, Millis(10'000)));
  }
  AuditPage page(const AuditQuery& query, std::size_t scan_max = kAuditScanMax) {
    auto found = read_audit(context_, auditor_, query, scan_max);
    EXPECT_TRUE(found.ok()) << (found.ok() ? "" : found.error().message);
    return found.ok() ? std::move(*found) : AuditPage{};
  }
  Context context_;
  const access::Subject auditor_{PrincipalId{9}, Role::Auditor, OrgId{9}, {}, {}};
};

TEST_F(Trail, LooksAtABoundedNumberOfEntriesAndGoesOnThere) {
  AuditQuery query;
  query.object = "org-1100";
  std::size_t calls = 0;
  std::vector<wire::AuditView> found;
  for (bool more = true; more; ++calls) {
    const AuditPage page = this->page(query, 500);
    found.insert(found.end(), page.items.begin(), page.items.end());
    query.after = page.next;
    more = page.next != 0;
  }
  EXPECT_EQ(calls, 3U);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].seq, 1100U);
  EXPECT_EQ(found[0].verb, "create");
  EXPECT_EQ(found[0].actor.id, "usr-1");
  EXPECT_EQ(found[0].actor.kind, "operator");
  EXPECT_EQ(found[0].request_id, "req-1100");
}

TEST_F(Trail, TimesBoundIt) {
  AuditQuery query;
  query.limit = 1000;
  query.since = WallTime{1'000'000 + 700'000}, query.until = WallTime{1'000'000 + 703'000};
  const AuditPage page = this->page(query);
  ASSERT_EQ(page.items.size(), 3U);
  EXPECT_EQ(page.items.front().seq, 700U);
  EXPECT_EQ(page.items.back().seq, 702U);
  EXPECT_EQ(page.next, 0U);
  query.since = WallTime{9'000'000'000'000}, query.until = {};
  EXPECT_TRUE(this->page(query).items.empty());
}

TEST_F(Trail, MembersSeeTheirOrganisationAndOfOthersActorsOnlyTheKind) {
  const access::Subject member{PrincipalId{50}, Role::Tenant, OrgId{700}, {}, {}};
  AuditQuery query;
  query.limit = 1000;
  auto found = read_audit(context_, member, query);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->items.size(), 1U);
  EXPECT_EQ(found->items[0].object.id, "org-700");
  EXPECT_EQ(found->items[0].actor.kind, "operator");
  EXPECT_EQ(found->items[0].actor.id, "");
  EXPECT_EQ(found->items[0].request_id, "");
  query.actor = "usr-1";  // who did it, but that is hidden
  EXPECT_TRUE(read_audit(context_, member, query)->items.empty());
  query.actor = "operator";
  EXPECT_EQ(read_audit(context_, member, query)->items.size(), 1U);
  query.actor = "", query.org = "org-699";
  EXPECT_TRUE(read_audit(context_, member, query)->items.empty());
}

TEST(JournalHead, HoldsAsLongAsNothingBeforeItChanges) {
  const Folder folder;
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  const auto store = world(30);
  const auto head = head_of(folder.dir, *store);
  const auto again = parse_head(wire::to_json(head));
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_TRUE(check_signature(*again, known_audit_keys(folder.dir)).ok());
  const auto report = verify_head(*world(40), *again, {});
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->verdict, HeadReport::Verdict::Holds) << report->text;
  EXPECT_EQ(report->proven, 30U);
  EXPECT_EQ(report->entries, 40U);
}

TEST(JournalHead, ARewrittenJournalIsFoundAlthoughItsChainIsWhole) {
  const Folder folder;
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  const auto head = head_of(folder.dir, *world(30)), older = head_of(folder.dir, *world(10));
  const auto changed = world(40, 17);
  const auto report = verify_head(*changed, head, {older});
  ASSERT_TRUE(report.ok()) << "its chain is whole";
  EXPECT_EQ(report->verdict, HeadReport::Verdict::Rewritten);
  EXPECT_NE(report->text.find("between 11 and 30"), std::string::npos) << report->text;
  EXPECT_EQ(verify_head(*changed, older, {})->verdict, HeadReport::Verdict::Holds) << "entry 17 came later";
}

TEST(JournalHead, ATruncatedJournalIsNamed) {
  const Folder folder;
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  const auto report = verify_head(*world(25), head_of(folder.dir, *world(30)), {});
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->verdict, HeadReport::Verdict::Truncated);
  EXPECT_NE(report->text.find("the entries 26 to 30 are missing"), std::string::npos) << report->text;
}

TEST(JournalHead, ARestoredBackupIsShownAndNoFault) {
  const Folder folder;
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  const auto head = head_of(folder.dir, *world(30)), older = head_of(folder.dir, *world(10));
  const auto backup = world(20);
  ASSERT_TRUE(engine::raise_incarnation(*backup, Now{WallTime{2'000'000}, LeaseTime{1}}, "restored").ok());
  const auto report = verify_head(*backup, head, {older});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->verdict, HeadReport::Verdict::Restored) << report->text;
  EXPECT_EQ(report->incarnation, 2U);
  EXPECT_NE(report->text.find("proves the entries 1 to 10"), std::string::npos) << report->text;
  const auto before = verify_head(*backup, older, {});
  EXPECT_EQ(before->verdict, HeadReport::Verdict::Holds);
  EXPECT_NE(before->text.find("restored later"), std::string::npos) << before->text;
}

TEST(JournalHead, OnlyTheOwnKeysCountAndOldOnesStayGood) {
  const Folder folder;
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  const auto store = world(5);
  const auto old = head_of(folder.dir, *store);
  EXPECT_EQ(fs::status(folder.dir.key("audit.pem")).permissions() & fs::perms::all,
            fs::perms::owner_read | fs::perms::owner_write);
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  EXPECT_EQ(head_of(folder.dir, *store).key_id, old.key_id) << "made once";
  ASSERT_TRUE(rotate_audit_key(folder.dir).ok());
  const auto fresh = head_of(folder.dir, *store);
  EXPECT_NE(fresh.key_id, old.key_id);
  const auto keys = known_audit_keys(folder.dir);
  EXPECT_EQ(keys.size(), 2U);
  EXPECT_TRUE(check_signature(old, keys).ok());
  EXPECT_TRUE(check_signature(fresh, keys).ok());
  EXPECT_FALSE(check_signature(old, {fresh.public_key}).ok());
  auto forged = old;
  forged.seq = 4;
  EXPECT_EQ(check_signature(forged, keys).error().code, Code::PermissionDenied);
  forged = old, forged.at = forged.at + Millis(1);
  EXPECT_FALSE(check_signature(forged, keys).ok());
  EXPECT_FALSE(check_signature(old, {}).ok());
  EXPECT_FALSE(parse_head("{}").ok());
  EXPECT_FALSE(parse_head("not json").ok());
}

TEST(JournalHead, OneADayIsKept) {
  const Folder folder;
  ASSERT_TRUE(ensure_audit_key(folder.dir).ok());
  const auto head = head_of(folder.dir, *world(5));
  EXPECT_TRUE(head_due(folder.dir, head.at));
  ASSERT_TRUE(keep_head(folder.dir, head).ok());
  EXPECT_FALSE(head_due(folder.dir, head.at));
  EXPECT_TRUE(head_due(folder.dir, head.at + Millis(86'400'000)));
  EXPECT_EQ(kept_heads(folder.dir, known_audit_keys(folder.dir)).size(), 1U);
  EXPECT_TRUE(kept_heads(folder.dir, {Bytes(32, 1)}).empty()) << "of a foreign key: not believed";
}

access::Subject person(std::uint64_t id) {
  return {PrincipalId{id}, Role::Tenant, OrgId{id}, {}, {}};
}

TEST(Refusals, AreAddedUpAndBounded) {
  AccessLog::Options options;
  options.rows_max = 10, options.queue_max = 30, options.addresses_a_minute = 5;
  const auto book = std::make_shared<TestAddresses>();
  AccessLog log(options, book);
  const WallTime now{1'000'000};
  for (int n = 0; n < 1000; ++n)
    log.refused({}, "Login", Code::Unauthenticated, "r" + std::to_string(n), "192.0.2.1:99", now + Millis(n));
  auto rows = log.rows();
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].view.count, 1000U);
  EXPECT_EQ(rows[0].view.first, now);
  EXPECT_EQ(rows[0].view.last, now + Millis(999));
  EXPECT_EQ(rows[0].view.actor.kind, "nobody");
  EXPECT_EQ(rows[0].view.last_request_id, "r4") << "five addresses a minute";
  for (std::uint64_t n = 1; n <= 50; ++n)
    log.refused(person(n), "ListOrgs", Code::PermissionDenied, "q", "[2001:db8::1]:5", now);
  rows = log.rows();
  EXPECT_EQ(rows.size(), 10U);
  EXPECT_EQ(rows[0].view.actor.id, "usr-50");
  EXPECT_GT(log.dropped(), 0U) << "the queue of addresses is bounded too";
  log.start();
  log.stop();
  EXPECT_EQ(log.address("nobody", "r4"), "192.0.2.1");
  EXPECT_EQ(log.address("nobody", "r5"), "");
  EXPECT_EQ(log.address("usr-1", "q"), "2001:db8::1");
}

TEST(Refusals, GoToAFileThatTurnsWithoutAddresses) {
  const Folder folder;
  AccessLog::Options options;
  options.file = (folder.path / "refused.log").string(), options.file_bytes = 1, options.files = 3;
  for (int round = 0; round < 5; ++round) {
    AccessLog log(options, std::make_shared<TestAddresses>());
    log.refused(person(7), "ListOrgs", Code::PermissionDenied, "req-" + std::to_string(round), "192.0.2.77:1",
                WallTime{1});
    log.start();
    log.stop();
  }
  EXPECT_NE(slurp(folder.path / "refused.log").find("req-4"), std::string::npos);
  EXPECT_NE(slurp(folder.path / "refused.log.2").find("req-2"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder.path / "refused.log.3"));
  EXPECT_EQ(slurp(folder.path / "refused.log").find("192.0.2.77"), std::string::npos);
  EXPECT_NE(slurp(folder.path / "refused.log").find("\"usr-7\""), std::string::npos);
}

TEST(Refusals, WithoutABookNoAddressIsKept) {
  AccessLog log({}, nullptr);
  log.came_from("usr-1", "r", "192.0.2.1:1", WallTime{1});
  EXPECT_EQ(log.address("usr-1", "r"), "");
  AccessLog::Options none;
  none.keep = Millis(0);
  const auto book = std::make_shared<TestAddresses>();
  AccessLog off(none, book);
  off.came_from("usr-1", "r", "192.0.2.1:1", WallTime{1});
  off.start();
  off.stop();
  EXPECT_EQ(off.address("usr-1", "r"), "");
}

}  // namespace
}  // namespace muster::server
