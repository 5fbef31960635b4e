// The pacer against a modelled link: a rate, a buffer, a delay, senders that grow their windows as TCP does, and small
// control packets whose wait before the link is measured.
#include "overlay/pacer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/rng.h"

namespace muster::overlay {
namespace {

constexpr std::uint64_t kModelTick = 1'000, kModelSecond = 1'000'000;
constexpr std::size_t kModelPacket = 1'412, kModelSmall = 100;

struct Model {
  double rate = 1.25e6;                      // bytes a second
  double buffer_s = 2;                       // at that rate
  std::uint64_t way_us = 10'000;             // one way
  std::uint64_t jitter_us = 0, back_us = 0;  // added on the way back: at random; always
  std::uint64_t loss_in = 0;                 // one of so many is lost, wherever
  bool told = true;                          // the other end says when a probe came, and what had come
  bool paced = true;
  double steady = 0;  // bytes a second of a sender that heeds nothing; 0 = windows as of TCP

  explicit Model(std::size_t senders = 1, std::uint64_t seed = 1) : rng(seed), senders_(senders) {}

  struct Sender {
    Pacer pacer;
    double window = 10 * kModelPacket, before = 0, threshold = 1e9, flying = 0, waiting = 0, tokens = 0;
    std::uint64_t cut_us = 0;
    std::uint64_t arrived = 0;  // bytes, at the other end
    bool paced = true;
  };
  struct Packet {
    std::size_t sender, bytes;
    std::uint64_t probe, entered_us;  // probe 0: data
    bool control;
  };

  void later(std::uint64_t after, std::function<void()> what) { events.emplace(now + after, std::move(what)); }
  void cut(Sender& s) {
    if (now - s.cut_us < 2 * way_us + kModelTick * 50) return;
    s.cut_us = now;
    s.before = s.window;
    s.window = s.threshold = std::max(s.window * 0.7, 2.0 * kModelPacket);
  }
  // Slow start, then CUBIC (RFC 9438).
  void grow(Sender& s) const {
    if (s.window < s.threshold) {
      s.window += kModelPacket;
      return;
    }
    const double t = static_cast<double>(now - s.cut_us) / kModelSecond, most = s.before / kModelPacket;
    const double wanted = (0.4 * std::pow(t - std::cbrt(most * 0.3 / 0.4), 3) + most) * kModelPacket;
    s.window += std::max(wanted - s.window, double{kModelPacket}) * kModelPacket / s.window;
  }
  void enter(const Packet& p) {
    const bool lost = loss_in != 0 && rng.chance(1, loss_in);
    if (!lost && queued + static_cast<double>(p.bytes) <= std::max(rate * buffer_s, 10.0 * kModelPacket)) {
      queued += static_cast<double>(p.bytes);
      link.push_back(p);
    } else if (p.probe == 0 && !p.control) {
      later(2 * way_us + back_us, [this, i = p.sender] {
        senders_[i].flying -= kModelPacket;
        cut(senders_[i]);
      });
    }
  }
  void leave(const Packet& p) {
    if (p.control) {
      waits.push_back(now - p.entered_us);
      return;
    }
    if (p.probe == 0) carried += p.bytes;
    later(way_us, [this, p] {
      Sender& s = senders_[p.sender];
      s.arrived += p.bytes;
      const std::uint64_t came_us = told ? now + 77 * kModelSecond : 0, bytes = told ? s.arrived : 0;
      later(way_us + back_us + (jitter_us == 0 ? 0 : rng.below(jitter_us)), [this, p, came_us, bytes] {
        Sender& sender = senders_[p.sender];
        if (p.probe != 0) return sender.pacer.answered(p.probe, now, came_us, bytes);
        sender.flying -= kModelPacket;
        grow(sender);
      });
    });
  }
  void send(std::size_t i) {
    Sender& s = senders_[i];
    if (steady > 0) {
      s.waiting += steady * kModelTick / kModelSecond;
    } else {
      while (s.flying + kModelPacket <= s.window) s.flying += kModelPacket, s.waiting += kModelPacket;
    }
    const auto pace = static_cast<double>(paced && s.paced ? s.pacer.rate() : 0);
    s.tokens = pace == 0 ? 0 : std::min(s.tokens + pace * kModelTick / kModelSecond, std::max(pace / 100, 3'000.0));
    while (s.waiting >= kModelPacket && (pace == 0 || s.tokens > 0)) {
      s.waiting -= kModelPacket;
      s.tokens -= kModelPacket;
      enter({i, kModelPacket, 0, now, false});
      s.pacer.sent(kModelPacket);
      if (const auto number = paced ? s.pacer.probe(now) : std::nullopt) enter({i, kModelSmall, *number, now, false});
    }
    if (pace > 0 && s.waiting > std::max(pace * 0.1, 8.0 * kModelPacket)) {  // what netd drops at the head
      s.waiting -= kModelPacket;
      s.flying -= kModelPacket;
      cut(s);
    }
  }
  void run(std::uint64_t length) {
    waits.clear();
    carried = 0;
    for (const std::uint64_t end = now + length; now < end; now += kModelTick) {
      while (!events.empty() && events.begin()->first <= now) {
        const auto what = std::move(events.begin()->second);
        events.erase(events.begin());
        what();
      }
      for (std::size_t i = 0; i < senders_.size(); ++i) send(i);
      if (now % 20'000 == 0) enter({0, kModelSmall, 0, now, true});
      room = std::min(room + rate * kModelTick / kModelSecond, rate * kModelTick / kModelSecond + kModelPacket);
      while (!link.empty() && room >= static_cast<double>(link.front().bytes)) {
        room -= static_cast<double>(link.front().bytes);
        queued -= static_cast<double>(link.front().bytes);
        const Packet p = link.front();
        link.pop_front();
        leave(p);
      }
    }
    used = static_cast<double>(carried) * kModelSecond / static_cast<double>(length) / rate;
    std::sort(waits.begin(), waits.end());
    wait99_ms = waits.empty() ? 0 : static_cast<double>(waits[waits.size() * 99 / 100]) / 1000;
  }

  Rng rng;
  std::uint64_t now = 5 * kModelSecond;
  std::multimap<std::uint64_t, std::function<void()>> events;
  std::deque<Packet> link;
  double queued = 0, room = 0, used = 0, wait99_ms = 0;
  std::uint64_t carried = 0;
  std::vector<std::uint64_t> waits;
  std::vector<Sender> senders_;
};

TEST(Pacer, AFullLinkIsUsedAndNothingStandsBeforeIt) {
  for (const bool told : {true, false}) {
    for (const double rate : {125e3, 625e3, 1.25e6, 12.5e6}) {
      for (const std::uint64_t way_us : {500ULL, 10'000ULL, 60'000ULL}) {
        Model m;
        m.told = told;
        m.rate = rate;
        m.way_us = way_us;
        m.run(20 * kModelSecond);
        m.run(40 * kModelSecond);
        EXPECT_GE(m.used, 0.8) << rate << " " << way_us << " " << told;
        EXPECT_LE(m.wait99_ms, 150) << rate << " " << way_us << " " << told;
        const auto carries = static_cast<double>(m.senders_[0].pacer.carries());
        EXPECT_NEAR(carries, rate, rate * 0.15) << way_us << " " << told;
      }
    }
  }
}

TEST(Pacer, WithoutItTheSameLinkDelaysForSeconds) {
  Model m;
  m.paced = false;
  m.run(20 * kModelSecond);
  m.run(20 * kModelSecond);
  EXPECT_GE(m.wait99_ms, 1'000);
}

TEST(Pacer, SeveralSendersShareALinkWithoutAQueue) {
  for (const std::size_t senders : {2U, 3U, 6U}) {
    Model m(senders, senders);
    m.run(30 * kModelSecond);
    m.run(40 * kModelSecond);
    EXPECT_GE(m.used, 0.8) << senders;
    EXPECT_LE(m.wait99_ms, 150) << senders;
    for (const auto& s : m.senders_) EXPECT_GT(s.pacer.rate(), 0U);
  }
}

TEST(Pacer, FollowsALinkThatBecomesFasterOrSlower) {
  for (const bool told : {true, false}) {
    Model m;
    m.told = told;
    m.run(15 * kModelSecond);
    for (const double factor : {4.0, 0.25, 0.2, 10.0, 0.5}) {
      m.rate *= factor;
      m.buffer_s = 2;
      m.run(20 * kModelSecond);
      m.run(20 * kModelSecond);
      EXPECT_GE(m.used, 0.8) << m.rate << " " << told;
      EXPECT_LE(m.wait99_ms, 150) << m.rate << " " << told;
    }
  }
}

TEST(Pacer, RadioThatLosesWithoutAQueueIsNotHeldBack) {
  for (const std::uint64_t loss_in : {100U, 20U, 5U}) {
    Model m(1, loss_in);
    m.rate = 50e6;
    m.loss_in = loss_in;
    m.jitter_us = 40'000;
    m.steady = 2e6;
    m.run(60 * kModelSecond);
    EXPECT_EQ(m.senders_[0].pacer.rate(), 0U) << loss_in;
    EXPECT_EQ(m.senders_[0].pacer.carries(), 0U) << loss_in;
  }
}

TEST(Pacer, ALinkThatIsNotFilledIsNotHeldBack) {
  Model m;
  m.steady = 0.8 * m.rate;
  m.run(60 * kModelSecond);
  EXPECT_EQ(m.senders_[0].pacer.rate(), 0U);
}

TEST(Pacer, WhatStandsOnTheWayBackIsNotOurs) {
  Model m;
  m.steady = 0.5 * m.rate;
  m.run(10 * kModelSecond);
  m.back_us = 400'000;
  m.run(10 * kModelSecond);
  EXPECT_EQ(m.senders_[0].pacer.rate(), 0U);
  Model untold;
  untold.told = false;
  untold.steady = 0.5 * untold.rate;
  untold.run(10 * kModelSecond);
  untold.back_us = 400'000;
  untold.run(2 * kModelSecond);
  EXPECT_GT(untold.senders_[0].pacer.rate(), 0U) << "who is told nothing cannot know better";
  untold.run(60 * kModelSecond);
  EXPECT_GE(untold.used, 0.8 * 0.5) << "but it does not stay so";
}

TEST(Pacer, BesideAStrangerThatFillsTheLinkItIsNotStarved) {
  Model m(2);
  m.senders_[1].paced = false;
  m.run(20 * kModelSecond);
  const std::uint64_t before = m.senders_[0].arrived;
  m.run(60 * kModelSecond);
  EXPECT_GT(m.senders_[0].arrived - before, 60 * 1.25e6 / 12);
  EXPECT_GE(m.used, 0.9);
}

TEST(Pacer, AWayThatBecameLongerIsUsedAllTheSame) {
  Model m;
  m.run(20 * kModelSecond);
  m.way_us = 90'000;
  m.run(20 * kModelSecond);
  m.run(30 * kModelSecond);
  EXPECT_GE(m.used, 0.8);
  EXPECT_LE(m.wait99_ms, 150);
}

TEST(Pacer, NoClockNoProbesAndStrangeAnswersAreNothing) {
  Pacer pacer;
  pacer.sent(1 << 20);
  EXPECT_FALSE(pacer.probe(0));
  Rng rng(4);
  std::uint64_t now = kModelSecond;
  for (int i = 0; i < 20'000; ++i, now += rng.below(100'000)) {
    pacer.sent(rng.below(200'000));
    const auto number = pacer.probe(now);
    switch (rng.below(4)) {
      case 0:
        pacer.answered(rng.next(), now, rng.next(), rng.next());
        break;
      case 1:
        pacer.answered(0, now, 1, 1);
        break;
      case 2:
        if (number) pacer.answered(*number, now + rng.below(3 * kModelSecond), rng.next(), rng.next());
        break;
      default:
        if (number) pacer.answered(*number, now - 1, 0, 0);
    }
    ASSERT_TRUE(pacer.rate() == 0 || (pacer.rate() >= 16'000 && pacer.rate() <= 400'000'000)) << pacer.rate();
    ASSERT_TRUE(std::isfinite(static_cast<double>(pacer.carries())));
  }
}

}  // namespace
}  // namespace muster::overlay
