/* The peer of `cargo xtask bench tunnel`: a tunnel in the shape of the one that flannel's UDP backend has. One thread, one packet a system
 * call, no offloads, the kernel's usual socket buffer, routes in a list. What is on the wire is the bare packet in a UDP datagram.
 *
 * udp_proxy DEVICE TUNNEL_ADDRESS LISTEN_ADDRESS PORT MTU (NETWORK/LENGTH=HOST:PORT)...
 *
 * The TUN device must be there, of one queue and without a header of virtio's; it ends when it is killed. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct route {
	uint32_t net, mask;
	struct sockaddr_in via;
};

static struct route *routes;
static size_t route_count;
static in_addr_t own;
static int tun, sock;

static void fail(const char *what)
{
	fprintf(stderr, "udp_proxy: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Looked up one by one; one that was found changes places with the first. */
static const struct sockaddr_in *find(uint32_t to)
{
	for (size_t at = 0; at < route_count; at++) {
		if ((to & routes[at].mask) != routes[at].net)
			continue;
		struct route found = routes[at];
		routes[at] = routes[0];
		routes[0] = found;
		return &routes[0].via;
	}
	return NULL;
}

/* RFC 1624: the time to live is the upper byte of its word. */
static int count_down(struct iphdr *ip)
{
	if (ip->ttl <= 1)
		return 0;
	ip->ttl--;
	uint32_t sum = ip->check + htons(0x100);
	ip->check = sum + (sum >= 0xffff);
	return 1;
}

static uint16_t checksum(const void *bytes, size_t len)
{
	const uint16_t *at = bytes;
	uint32_t sum = 0;
	for (; len > 1; len -= 2)
		sum += *at++;
	if (len)
		sum += *(const uint8_t *)at;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* What the device does not take is lost. */
static void put(const void *packet, size_t len)
{
	(void)!write(tun, packet, len);
}

/* ICMP's destination unreachable (net), with the header and eight bytes of what caused it; never in answer to ICMP. */
static void unreachable(const struct iphdr *cause, size_t len)
{
	struct {
		struct iphdr ip;
		struct icmphdr icmp;
		uint8_t quote[68];
	} __attribute__((packed)) answer = {0};
	size_t quoted = cause->ihl * 4 + 8;
	if (quoted > len)
		quoted = len;
	memcpy(answer.quote, cause, quoted);
	answer.icmp.type = ICMP_DEST_UNREACH;
	answer.icmp.code = ICMP_NET_UNREACH;
	answer.icmp.checksum = checksum(&answer.icmp, sizeof answer.icmp + quoted);
	size_t total = sizeof answer.ip + sizeof answer.icmp + quoted;
	answer.ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_ICMP, .saddr = own,
				   .daddr = cause->saddr, .tot_len = htons(total)};
	answer.ip.check = checksum(&answer.ip, sizeof answer.ip);
	put(&answer, total);
}

static int outward(char *packet, size_t room)
{
	ssize_t len = read(tun, packet, room);
	if (len < 0) {
		if (errno != EAGAIN)
			fail("read a packet");
		return 0;
	}
	struct iphdr *ip = (struct iphdr *)packet;
	if ((size_t)len < sizeof *ip || ip->version != 4)
		return 1;
	const struct sockaddr_in *via = find(ntohl(ip->daddr));
	if (!via && ip->protocol != IPPROTO_ICMP)
		unreachable(ip, len);
	else if (via && count_down(ip))
		/* What there is no room for is lost. */
		sendto(sock, packet, len, 0, (const struct sockaddr *)via, sizeof *via);
	return 1;
}

static int inward(char *packet, size_t room)
{
	ssize_t len = recv(sock, packet, room, 0);
	if (len < 0) {
		if (errno != EAGAIN && errno != ECONNREFUSED)
			fail("receive a packet");
		return 0;
	}
	struct iphdr *ip = (struct iphdr *)packet;
	if ((size_t)len >= sizeof *ip && ip->version == 4 && count_down(ip))
		put(packet, len);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc < 6) {
		fprintf(stderr, "usage: udp_proxy DEVICE TUNNEL_ADDRESS LISTEN_ADDRESS PORT MTU (NETWORK/LENGTH=HOST:PORT)...\n");
		return 2;
	}
	routes = calloc(argc, sizeof *routes);
	for (int at = 6; at < argc; at++) {
		char net[32], host[32];
		unsigned length, port;
		if (sscanf(argv[at], "%31[^/]/%u=%31[^:]:%u", net, &length, host, &port) != 4 || length > 32) {
			fprintf(stderr, "udp_proxy: %s is no NETWORK/LENGTH=HOST:PORT\n", argv[at]);
			return 2;
		}
		uint32_t mask = length ? ~0u << (32 - length) : 0;
		routes[route_count++] = (struct route){
			.net = ntohl(inet_addr(net)) & mask,
			.mask = mask,
			.via = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(host), .sin_port = htons(port)},
		};
	}

	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
	tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0)
		fail(argv[1]);

	own = inet_addr(argv[2]);
	struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(argv[3]),
				    .sin_port = htons(atoi(argv[4]))};
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	if (sock < 0 || bind(sock, (struct sockaddr *)&local, sizeof local) < 0)
		fail("UDP socket");

	size_t room = atoi(argv[5]);
	char *packet = malloc(room);
	struct pollfd fds[2] = {{.fd = tun, .events = POLLIN}, {.fd = sock, .events = POLLIN}};
	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			fail("poll");
		/* As long as there is something a read is cheaper than asking for it. */
		while (outward(packet, room) + inward(packet, room))
			;
	}
}
