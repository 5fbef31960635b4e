"""A part of the network laboratory (make lab): shipped netds and relay behind NATs, direct exactly where tests/lab/nat_table.txt says so, by
IPv6, by a carrier that leads back inside, by a way that carries less than it says, and through a CONNECT proxy with a password; and what
happens to networks under packets that never stop."""
import os
import socket
import struct
import sys
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/lab"))
import nat_faults  # noqa: E402
import nat_lab  # noqa: E402

BUILD = os.path.join(ROOT, os.environ.get("MUSTER_BUILD", "build/release"))
BESIDE = "host"  # a lane of its own in tools/test.py: mostly waits
PAIRS = [("port", "cgnat"), ("symmetric", "open"), ("moved", "symmetric"), ("proxy", "port"), ("dual", "six"), ("hairpin", "hairpin"), ("narrow", "address"), ("six", "noudp")]
DIRECT = 5
FAULTS = ["blocked", "moves", "narrows"]


class Tap:
    """Every IPv4 packet on an interface of a namespace: (from, to)."""

    def __init__(self, namespace, device):
        self.seen, self.space, self.stop = set(), os.open("/run/netns/" + namespace, os.O_RDONLY), False
        ready = threading.Event()
        self.thread = threading.Thread(target=self.listen, args=(device, ready), daemon=True)
        self.thread.start()
        ready.wait(5)

    def listen(self, device, ready):
        nat_lab.enter_namespace(self.space)
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003)) as s:
            s.bind((device, 0x0003))
            s.settimeout(0.2)
            ready.set()
            while not self.stop:
                try:
                    packet = s.recv(65536)
                except TimeoutError:
                    continue
                if len(packet) >= 20 and packet[0] >> 4 == 4:
                    self.seen.add(tuple(socket.inet_ntoa(each) for each in struct.unpack("4s4s", packet[12:20])))

    def close(self):
        self.stop = True
        self.thread.join(5)
        os.close(self.space)
        return self.seen


@unittest.skipUnless(os.geteuid() == 0, "makes network namespaces: needs root")
@unittest.skipUnless(os.path.exists(os.path.join(BUILD, "muster-nat-rig")), "muster-nat-rig is not built: cmake --build --preset release --target muster-nat-rig")
class NatLab(unittest.TestCase):
    def test_ways_are_found_where_they_must_be_and_the_relay_serves_the_rest(self):
        table = nat_lab.read_table()
        lab = nat_lab.NatLab(BUILD)
        try:
            results = lab.round(PAIRS, table)
            proxies = dict(lab.proxies)
            faults = nat_faults.run(lab, FAULTS, print, factor=3)
        finally:
            lab.close()
        self.assertEqual([], [fault for r in results for fault in nat_lab.faults(r, table, usable_ms=15_000)], "other tests run beside this one: times are make lab's")
        self.assertEqual(sorted(PAIRS), sorted(nat_lab.kinds_of(r) for r in results))
        self.assertEqual(DIRECT, sum(nat_lab.went_direct(r) for r in results), results)
        self.assertEqual([("dual", "six")], [nat_lab.kinds_of(r) for r in results if r["six"]])
        self.assertEqual([], [wrong for fault in faults for wrong in fault["wrong"]])
        self.assertEqual(FAULTS, [fault["name"] for fault in faults])
        self.assertGreaterEqual(proxies["proxy-a"].tunnels, 1, "the machine behind the proxy got out by it")
        for r in results:
            self.assertGreater(r["rtt_a_us"], 0, "the round trip of every pair is measured, also by the relay: %s" % r)
            self.assertLessEqual(r["lost"], 3, r)

    def test_of_two_relays_the_nearer_is_used_and_its_death_resets_nothing(self):
        lab = nat_lab.NatLab(BUILD, far=True)
        talk = None
        near, far = nat_lab.RELAY + ":443", nat_lab.FAR_RELAY + ":443"
        by = lambda relay: lambda ways: len(ways) == 2 and all(w["path"] == "relay" and w["relay"] == relay for w in ways.values())  # noqa: E731
        try:
            cluster = lab.hold("symmetric-a", "symmetric-b")
            talk = nat_lab.Talk(lab.lab.full("symmetric-a-l"), lab.lab.full("symmetric-b-l"), "100.64.%d.2" % cluster)
            ways, _ = lab.wait_ways(cluster, lambda ways: by(near)(ways) and all(w["rtt_us"] > 0 for w in ways.values()) and talk.count > 0, 20)
            self.assertTrue(by(near)(ways), "the second of the list, but the nearer one: %s" % ways)
            time.sleep(4)  # all are measured by now
            swift = lambda ways: by(near)(ways) and all(w["rtt_us"] < 2e6 * nat_lab.FAR_SECONDS for w in ways.values())  # noqa: E731
            ways, _ = lab.wait_ways(cluster, swift, 20)  # a busy machine can be slow for a moment
            self.assertTrue(swift(ways), ways)
            talk.since()
            before = talk.count
            lab.lab.pull_cable("relay")  # it neither answers nor resets anything
            ways, after = lab.wait_ways(cluster, by(far), 12)
            self.assertTrue(by(far)(ways), "%s; %s" % (ways, talk.fault))
            self.assertLess(after, 6, "seconds until both had left the dead one")
            again = time.monotonic() + 8  # TCP asks less and less often meanwhile
            while talk.count <= before + 10 and time.monotonic() < again:
                time.sleep(0.1)
            self.assertIsNone(talk.fault, "the TCP connection lives on")
            self.assertGreater(talk.count, before + 10, "and is answered")
            gap = talk.since()
            self.assertLess(gap, 10, "seconds without an answer (left after %.1f)" % after)
            self.assertGreater(gap, 1, "it was dead for a while: else this shows nothing")
            time.sleep(1)
            self.assertGreater(talk.since(), 2 * nat_lab.FAR_SECONDS, "the far one carries it now")
            print("two relays: left after %.1f s, %.1f s without an answer" % (after, gap))
        finally:
            if talk is not None:
                talk.close()
            lab.close()

    def test_a_member_carries_between_two_that_cannot_reach_each_other_and_the_relay_when_it_goes(self):
        lab = nat_lab.NatLab(BUILD)
        talk = None
        both = lambda path: lambda ways: all((pair in ways and ways[pair]["path"] == path) for pair in ((1, 2), (2, 1)))  # noqa: E731
        try:
            cluster = lab.hold("symmetric-a", "symmetric-b", "full-a")
            talk = nat_lab.Talk(lab.lab.full("symmetric-a-l"), lab.lab.full("symmetric-b-l"), "100.64.%d.2" % cluster)
            ways, _ = lab.wait_ways(cluster, lambda ways: both("relay")(ways) and talk.count > 20, 20)
            self.assertTrue(both("relay")(ways), "nobody offered yet: %s" % ways)
            lab.ask("carry full-a on", "carry")
            ways, after = lab.wait_ways(cluster, both("peer"), 25)
            self.assertTrue(both("peer")(ways), ways)
            self.assertEqual({3}, {ways[pair]["by"] for pair in ((1, 2), (2, 1))}, "the third member carries")
            self.assertEqual({"direct"}, {ways[pair]["path"] for pair in ((1, 3), (2, 3))})
            before = talk.count
            time.sleep(2)
            self.assertGreater(talk.count, before + 10)
            counts = {(c["at"], c["by"], c["with"]): c for c in lab.ask("look %d" % cluster, "look")["carried"]}
            one, other = counts[1, 3, 2], counts[2, 3, 1]
            self.assertGreater(one["sent"], 2000)
            self.assertAlmostEqual(one["sent"], other["received"], delta=0.2 * one["sent"], msg="both ends count the same: %s" % counts)
            talk.since()
            lab.ask("stop full-a", "stopped")
            ways, back = lab.wait_ways(cluster, both("relay"), 15)
            self.assertTrue(both("relay")(ways), ways)
            time.sleep(4)
            before = talk.count
            time.sleep(1)
            self.assertIsNone(talk.fault, "the TCP connection lives on")
            self.assertGreater(talk.count, before + 5, "and is answered")
            print("carried %.1f s after the offer; the relay %.1f s after its end, %.1f s without an answer" % (after, back, talk.since()))
        finally:
            if talk is not None:
                talk.close()
            lab.close()

    def test_nobody_learns_where_a_machine_is_whose_owner_hides_it(self):
        lab = nat_lab.NatLab(BUILD)
        talk = None
        both = lambda path: lambda ways: len(ways) == 2 and all(w["path"] == path for w in ways.values())  # noqa: E731
        try:
            cluster = lab.hold("port-a", "port-b")
            talk = nat_lab.Talk(lab.lab.full("port-a-l"), lab.lab.full("port-b-l"), "100.64.%d.2" % cluster)
            ways, _ = lab.wait_ways(cluster, both("direct"), 20)
            self.assertTrue(both("direct")(ways), "else this shows nothing: %s" % ways)
            outside = [lab.wans["port-a-r"], lab.nets["port-a"] + ".10"]
            self.assertIn(outside[0], " ".join(ways[2, 1]["tries"]), "it was known before")
            lab.ask("owner port-a relay-only 1", "owner")
            ways, after = lab.wait_ways(cluster, both("relay"), 10)
            self.assertTrue(both("relay")(ways), ways)
            self.assertTrue(ways[2, 1]["hidden"])
            time.sleep(1)
            taps = [Tap(lab.lab.full(router), "wan") for router in ("port-a-r", "port-b-r")]
            before = talk.count
            time.sleep(12)
            seen = [tap.close() for tap in taps]
            between = {lab.wans["port-a-r"], lab.wans["port-b-r"]}
            self.assertEqual([], [pair for each in seen for pair in each if set(pair) == between], "packets went straight")
            self.assertIn((lab.wans["port-a-r"], nat_lab.RELAY), seen[0], "the tap hears")
            self.assertGreater(talk.count, before + 50)
            told = str(lab.ask("look %d" % cluster, "look")["pairs"])
            for address in outside:
                self.assertNotIn(address, told, "it is forgotten where it was")
            self.assertEqual([], lab.ways(cluster)[1, 2]["tries"])
            lab.ask("owner port-a relay-only 0", "owner")
            ways, again = lab.wait_ways(cluster, both("direct"), 60)
            self.assertTrue(both("direct")(ways), ways)
            self.assertIsNone(talk.fault, "the TCP connection lives on")
            print("hidden after %.1f s, direct again %.1f s after the owner said so" % (after, again))
        finally:
            if talk is not None:
                talk.close()
            lab.close()

    def test_a_port_that_the_owner_forwards_makes_a_direct_way(self):
        lab = nat_lab.NatLab(BUILD)
        by = lambda path: lambda ways: len(ways) == 2 and all(w["path"] == path for w in ways.values())  # noqa: E731
        try:
            cluster = lab.hold("symmetric-a", "symmetric-b")
            talk = nat_lab.Talk(lab.lab.full("symmetric-a-l"), lab.lab.full("symmetric-b-l"), "100.64.%d.2" % cluster)
            ways, _ = lab.wait_ways(cluster, lambda ways: by("relay")(ways) and talk.count > 50, 20)
            self.assertTrue(by("relay")(ways), ways)
            router, host, wan = "symmetric-a-r", lab.nets["symmetric-a"] + ".10", lab.wans["symmetric-a-r"]
            lab.nft(router, "table ip forward {\n  chain inward { type nat hook prerouting priority -101; iifname \"wan\" udp dport 41641 dnat to %s:41641; }\n}\n" % host)
            lab.lab.run(router, ["nft", "insert", "rule", "ip", "lab", "through", "ct", "status", "dnat", "accept"])
            lab.ask("owner symmetric-a udp-port 41641;endpoint %s:41641" % wan, "owner")
            ways, after = lab.wait_ways(cluster, by("direct"), 20)
            self.assertTrue(by("direct")(ways), ways)
            self.assertEqual("%s:41641" % wan, ways[2, 1]["tries"][1], "it is the first that is tried after those of the roster")
            print("direct %.1f s after the owner said where" % after)
        finally:
            talk.close()
            lab.close()

    @unittest.skipUnless(os.path.exists(nat_lab.MINIUPNPD), "miniupnpd-nftables is not installed: tools/install-deps test")
    def test_a_router_that_is_asked_lets_members_in_and_is_asked_again_when_it_forgot(self):
        lab = nat_lab.NatLab(BUILD)
        talk = None
        by = lambda path: lambda ways: len(ways) == 2 and all(w["path"] == path for w in ways.values())  # noqa: E731
        try:
            cluster = lab.hold("mapped-a", "symmetric-b")
            outside = "%s.%d:" % (nat_lab.MAPPED_NET, lab.upnpds["mapped-a-r"][0])
            self.assertEqual("PCP", lab.ask("mapped mapped-a", "map")["how"])
            talk = nat_lab.Talk(lab.lab.full("mapped-a-l"), lab.lab.full("symmetric-b-l"), "100.64.%d.2" % cluster)
            ways, direct = lab.wait_ways(cluster, by("direct"), 20)
            self.assertTrue(by("direct")(ways), ways)
            self.assertIn(outside, ways[2, 1]["tries"][1], "by what the router granted, after what the roster says")
            for pmp, way in (("yes", ""), ("yes", "natpmp"), ("no", "")):
                lab.forget_mappings("mapped-a-r")
                ways, gone = lab.wait_ways(cluster, by("relay"), 15)
                self.assertTrue(by("relay")(ways), "the mapping was what made it direct: %s" % ways)
                lab.start_upnpd("mapped-a-r", pmp=pmp)
                if way or pmp == "no":
                    how = lab.map_port("mapped-a", way)["how"]
                    self.assertEqual("UPnP" if pmp == "no" else "NAT-PMP", how)
                ways, again = lab.wait_ways(cluster, by("direct"), 45)
                self.assertTrue(by("direct")(ways), "asked %s, %s: %s" % (pmp, way, ways))
                print("relay %.1f s after the router forgot, direct %.1f s after it was back (%s)" % (gone, again, lab.ask("mapped mapped-a", "map")["how"]))
            self.assertIsNone(talk.fault, "the TCP connection lives on")
        finally:
            if talk is not None:
                talk.close()
            lab.close()

    def test_what_does_not_fit_the_table_is_a_fault(self):
        table = nat_lab.read_table()
        good = {"a": "port-a", "b": "cgnat-b", "usable_ms": 400, "direct_ms": 900, "path_a": "direct", "path_b": "direct", "full": True, "lost": 0, "rtt_a_us": 1}
        self.assertEqual([], nat_lab.faults(good, table))
        for change, word in (({"direct_ms": -1, "path_a": "relay"}, "the table says direct"), ({"b": "symmetric-b"}, "the table says relay"),
                             ({"usable_ms": -1}, "no packet"), ({"full": False}, "full size"), ({"usable_ms": 9000}, "usable only after")):
            self.assertIn(word, " ".join(nat_lab.faults(dict(good, **change), table)), change)
        relayed = dict(good, b="symmetric-b", direct_ms=-1, path_a="relay", path_b="relay", udp_a=True, udp_b=True)
        self.assertEqual([], nat_lab.faults(relayed, table))
        self.assertIn("relay-udp 0.4 s", nat_lab.table_text([relayed], list(nat_lab.KINDS)))
        self.assertIn("symmetric goes by the relay over TLS", " ".join(nat_lab.faults(dict(relayed, udp_b=False), table)))
        self.assertEqual([], nat_lab.faults(dict(relayed, b="noudp-b", udp_b=False), table))
        self.assertIn("noudp goes by the relay over UDP", " ".join(nat_lab.faults(dict(relayed, b="noudp-b"), table)))
        sized = dict(good, mtu_a=1420, mtu_b=1200)
        self.assertIn("1200 bytes fit through, not 1420", " ".join(nat_lab.faults(sized, table)))
        self.assertEqual([], nat_lab.faults(dict(good, b="narrow-b", mtu_a=1200, mtu_b=1200), table))
        self.assertIn("direct 0.9 s", nat_lab.table_text([good], list(nat_lab.KINDS)))
        self.assertIn("0.9 s</text>", nat_lab.picture([good], list(nat_lab.KINDS)))
        self.assertIn("direct6 0.9 s", nat_lab.table_text([dict(good, six=True)], list(nat_lab.KINDS)))

    def test_a_fault_is_measured_against_its_bound(self):
        class Nothing:
            """A pair to which nothing happens."""
            name, wrong = "blocked", []

            def join(self):
                self.wrong = []

            end = join
        for pause, way in ((900, []), (7000, ["blocked: no packet for 7000 ms, 6000 are allowed"])):
            fault = {"name": "blocked", "what": "x", "kinds": ("port", "port"), "bound_ms": 6000, "work": lambda p, pause=pause: pause}
            pair = Nothing()
            pair.end = lambda: None
            nat_faults.play(pair, fault)
            self.assertEqual(way, fault["wrong"])
            self.assertIn("| 6 s | %s |" % ("**fails**" if way else "0.9 s"), nat_faults.table_text([fault]))


if __name__ == "__main__":
    unittest.main()
