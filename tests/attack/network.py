"""Attacks by the network: what must not be reached, what must not be forged."""
import errno
import fcntl
import os
import socket
import struct

from frame import Blocked, any_of, attack, need


def reach(place):
    """Something that answers there says the token; it does so by TCP and by UDP."""
    address, port = need("reach_" + place).rsplit("/", 1)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def by(kind):
        with socket.socket(family, kind) as link:
            link.settimeout(2)
            link.connect((address, int(port)))
            link.send(b"hello")
            got = link.recv(100)
            if need("token").encode() not in got:
                raise Blocked("somebody else answers")
            return "%s answers" % address
    return any_of((("TCP", lambda: by(socket.SOCK_STREAM)), ("UDP", lambda: by(socket.SOCK_DGRAM))))


@attack
def reach_the_machine_on_its_lan():
    return reach("machine")


@attack
def reach_the_gateway():
    return reach("gateway")


@attack
def reach_a_neighbour_on_the_lan():
    return reach("neighbour")


@attack
def reach_the_metadata_service():
    return reach("metadata")


@attack
def reach_the_metadata_service_by_ipv6():
    return reach("metadata6")


@attack
def reach_shared_address_space():
    return reach("cgnat")


@attack
def reach_the_machines_loopback():
    return reach("loopback")


@attack
def reach_the_machines_loopback_by_ipv6():
    return reach("loopback6")


@attack
def reach_the_internet():
    return reach("internet")


@attack
def reach_another_tenants_overlay():
    return reach("tenant")


@attack
def raw_socket():
    return any_of((("IP", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).fileno()),
                   ("IPv6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6).fileno())))


@attack
def packet_socket():
    return any_of((("frames", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).fileno()),
                   ("datagrams", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)).fileno())))


@attack
def vsock():
    return "may speak to the machine's host: %d" % socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).fileno()


@attack
def arp_spoof():
    """Tells the link that an address of somebody else is here."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    link.bind((need("device"), 0))
    mac, theirs = bytes.fromhex("020000000099"), socket.inet_aton(need("arp_address"))
    frame = b"\xff" * 6 + mac + struct.pack(">HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2) + mac + theirs + b"\xff" * 6 + theirs
    return "sent %d bytes of ARP" % link.send(frame)


def _checksum(data):
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


@attack
def spoof_a_source():
    """A datagram into the overlay from an address that is not ours."""
    source, target = need("spoof_source"), (need("spoof_target"), 9)

    def bound(level, option):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.setsockopt(level, option, 1)
            link.bind((source, 9))
            return link.sendto(b"spoofed", target)

    def forged():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as link:
            udp = struct.pack(">HHHH", 9, 9, 15, 0) + b"spoofed"
            head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target[0]))
            head = head[:10] + struct.pack(">H", _checksum(head)) + head[12:]
            return link.sendto(head + udp, target)
    return any_of((("IP_FREEBIND", lambda: bound(socket.IPPROTO_IP, 15)), ("IP_TRANSPARENT", lambda: bound(socket.IPPROTO_IP, 19)), ("raw", forged)))


def _netlink(kind, flags, body):
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
    answer = link.recv(8192)
    code = struct.unpack("=i", answer[16:20])[0]
    if code != 0:
        raise OSError(-code, "netlink: " + errno.errorcode.get(-code, str(code)))


@attack
def own_address():
    """One more address for loopback, taken away again."""
    index = socket.if_nametoindex("lo")
    address = struct.pack("=HH4s", 8, 2, socket.inet_aton("192.0.2.77")) + struct.pack("=HH4s", 8, 1, socket.inet_aton("192.0.2.77"))
    body = struct.pack("=BBBBi", socket.AF_INET, 32, 0, 0, index) + address
    _netlink(20, 0x600, body)
    _netlink(21, 0, body)
    return "gave itself an address"


@attack
def own_route():
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, 4, 253, 1, 0) + struct.pack("=HH4s", 8, 1, socket.inet_aton("192.0.2.78"))
    body += struct.pack("=HHi", 8, 4, socket.if_nametoindex("lo"))
    _netlink(24, 0x600, body)
    _netlink(25, 0, body)
    return "gave itself a route"


@attack
def own_tunnel():
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", b"attack0", 0x1001))
    return "made a tunnel of its own"
