// The kernel fast path: what forward::egress and forward::ingress do for plain packets, as programs
// at the tcx hooks of the overlay device and of the underlay device.
//
// It does not seal, bundle, split, answer by ICMP or learn anything: the daemon does, and it gets
// each packet that is not accepted here. README.md has the rules, the maps and the wire format.
//
// Invariant: a packet is accepted only if `forward` would accept it, with the same inner bytes.
// Each other packet goes on unchanged (TCX_NEXT), except one that must be dropped because it cannot
// carry a congestion mark (RFC 6040).
//
// The file needs no headers and no BTF: the few definitions of the kernel's ABI that it uses are
// below (linux/bpf.h). src/fastpath/layout.rs has the same maps and structs; LAYOUT is the version
// of both.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 be16; // in network byte order
typedef u32 be32;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define htons(x) ((be16)__builtin_bswap16(x))
#define ntohs(x) __builtin_bswap16(x)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the object is built for little-endian machines"
#endif

// --- the kernel's ABI ----------------------------------------------------------------------------

struct __sk_buff {
    u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
    u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id, family;
    u32 remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
    u64 flow_keys, tstamp;
    u32 wire_len, gso_segs;
    u64 sk;
    u32 gso_size;
};

enum { TCX_NEXT = -1, TCX_DROP = 2 };
enum { PACKET_HOST = 0 };
enum { ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86dd };
enum { TCP = 6, UDP = 17 };

enum { MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LRU_HASH = 9, MAP_LPM_TRIE = 11 };
enum { NO_PREALLOC = 1 };
enum { INGRESS = 1 };          // BPF_F_INGRESS of bpf_redirect
enum { RECOMPUTE_CSUM = 1 };   // BPF_F_RECOMPUTE_CSUM of bpf_skb_store_bytes
enum { ROOM_BEHIND_MAC = 1 };  // BPF_ADJ_ROOM_MAC
enum {                         // BPF_F_ADJ_ROOM_*
    FIXED_GSO = 1 << 0, ENCAP_L3_IPV4 = 1 << 1, ENCAP_L4_UDP = 1 << 4, DECAP_L3_IPV6 = 1 << 8,
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*store_bytes)(struct __sk_buff *, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*l3_csum_replace)(struct __sk_buff *, u32 offset, u64 from, u64 to, u64 size) = (void *)10;
static long (*redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*load_bytes)(const struct __sk_buff *, u32 offset, void *to, u32 len) = (void *)26;
static u32 (*get_hash)(struct __sk_buff *) = (void *)34;
static long (*change_head)(struct __sk_buff *, u32 bytes, u64 flags) = (void *)43;
static long (*adjust_room)(struct __sk_buff *, int bytes, u32 mode, u64 flags) = (void *)50;
static u64 (*boot_ns)(void) = (void *)125;
static long (*redirect_neigh)(u32 ifindex, void *next_hop, int len, u64 flags) = (void *)152;

struct ipv4 {
    u8 version_ihl, tos;
    be16 length, id, fragment;
    u8 ttl, protocol;
    be16 checksum;
    be32 src, dst;
};

struct ipv6 {
    u8 version_class, class_label, label[2];
    be16 payload;
    u8 next, hop_limit;
    be32 src[4], dst[4];
};

struct udp {
    be16 src, dst, length, checksum;
};

// What the fast path adds to a packet.
struct outer {
    struct ipv4 ip;
    struct udp udp;
};

enum { ETHERNET = 14, OUTER = sizeof(struct outer) };
_Static_assert(OUTER == 28, "an IPv4 and a UDP header");

// --- maps ----------------------------------------------------------------------------------------

struct map_definition {
    u32 type, key_size, value_size, max_entries, flags, id, pinning;
};

// When the fast path ends by itself, and which configuration is in force. The daemon writes the
// other configuration first, so that no packet meets half of a new one.
struct live {
    u64 expires_boot_ns;
    u32 active;
    u32 layout;
};

enum { VERIFY_SOURCE = 1, GRO_FOR_TCP = 2 }; // config.flags
enum { PORTS = 8 };

struct config {
    be32 address;      // of this host on the underlay
    be16 port;         // at which all hosts receive
    u16 flags;
    u32 overlay;       // index of the overlay device
    u32 gro;           // index of the near end of the pair with GRO
    be16 ports[PORTS]; // source ports: those of the daemon's workers
    be32 public4;      // further inner sources of this host; 0: none
    be32 public6[4];
};

enum { LOCAL = 1, PEER = 2, HOST = 3 };        // route.kind; another value belongs to the daemon
enum { MAY_SEND = 1, IS_CLEAR = 2, ECN = 4 };  // route.flags

struct route {
    u8 kind, flags;
    u16 mtu;       // longest packet of this family that the path takes
    be32 peer;     // address of the peer on the underlay
    u32 underlay;  // index of the device that leads to the peer
    u32 used;      // when the last packet left: nanoseconds >> USED_SHIFT of the clock in `live`
};

struct key4 {
    u32 prefix;
    be32 address;
};

struct key6 {
    u32 prefix;
    be32 address[4];
};

// A UDP flow. An IPv4 address stands in the first word.
struct flow {
    be32 src[4], dst[4], ports;
};

// Counters of one direction. The reasons for the daemon's path begin at OFF. The last five are of
// ingress only, and about the pair with GRO.
enum {
    PACKETS, BYTES, SUPER_PACKETS, UNMARKABLE,
    OFF, OTHER, MALFORMED, NO_ROUTE, NO_PEER, SOURCE, TOO_BIG, UDP_TRAIN, SLOW_FLOW, SUPER_PACKET,
    USERSPACE, TYPE, MISROUTED, KERNEL, COUNTERS = 24,
    LONG_SEGMENTS = 19, // single TCP packets of at least LONG bytes
    TO_GRO,             // packets that entered the pair
    FROM_GRO,           // these packets, as they left it
    MERGED,             // packets and super packets as which they left it
    MERGED_SUPER,       // super packets among them
};

struct counters {
    u64 egress[COUNTERS], ingress[COUNTERS];
};

_Static_assert(sizeof(struct live) == 16 && sizeof(struct config) == 52, "layout.rs has these sizes");
_Static_assert(sizeof(struct route) == 16 && sizeof(struct counters) == 384, "so it has these");

#define MAP(name, ...) struct map_definition name SECTION("maps") = { __VA_ARGS__ }
MAP(live, MAP_ARRAY, 4, sizeof(struct live), 1);
MAP(config, MAP_ARRAY, 4, sizeof(struct config), 2);
MAP(routes4, MAP_LPM_TRIE, sizeof(struct key4), sizeof(struct route), 1 << 18, NO_PREALLOC);
MAP(routes6, MAP_LPM_TRIE, sizeof(struct key6), sizeof(struct route), 1 << 18, NO_PREALLOC);
MAP(counters, MAP_PERCPU_ARRAY, 4, sizeof(struct counters), 1);
MAP(slow_flows, MAP_LRU_HASH, sizeof(struct flow), sizeof(u64), 4096);

// Bytes before the IP header on the overlay device. A TUN has none; a test run of the kernel always
// has an Ethernet header.
const volatile u32 overlay_header = 0;

char license_text[] SECTION("license") = "MIT";

// --- both directions -----------------------------------------------------------------------------

INLINE const struct config *live_config(u64 *now)
{
    u32 zero = 0;
    struct live *state = map_lookup(&live, &zero);
    if (!state)
        return 0;
    *now = boot_ns();
    if (*now >= state->expires_boot_ns)
        return 0;
    u32 active = state->active & 1;
    return map_lookup(&config, &active);
}

INLINE struct counters *own_counters(void)
{
    u32 zero = 0;
    return map_lookup(&counters, &zero);
}

// Counts one event. The empty instruction keeps the compiler from merging this with other counters
// into one addition to a pointer: the verifier allows that only to a process with CAP_PERFMON.
#define COUNT(counter)                                   \
    do {                                                 \
        __asm__ volatile("# counter %0" ::"i"(counter)); \
        count[counter]++;                                \
        __asm__ volatile("# counter %0" ::"i"(counter)); \
    } while (0)

// Leaves the packet to the daemon, for a counted reason.
#define PASS(reason)     \
    do {                 \
        COUNT(reason);   \
        return TCX_NEXT; \
    } while (0)

INLINE struct route *lookup4(be32 address)
{
    struct key4 key = { 32, address };
    return map_lookup(&routes4, &key);
}

INLINE struct route *lookup6(const be32 *address)
{
    struct key6 key = { 128, { address[0], address[1], address[2], address[3] } };
    return map_lookup(&routes6, &key);
}

INLINE int is_same6(const be32 *one, const be32 *other)
{
    return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

// The inner packet.
struct inner {
    union {
        struct ipv4 v4;
        struct ipv6 v6;
    };
    u32 is_v6;
    u32 header;      // bytes of the IP header
    u32 length;      // bytes of the whole packet
    u32 packets;     // after segmentation
    u32 stride;      // bytes of the longest of them
    u32 headers;     // bytes of all headers, for a super packet
    u8 protocol;     // what follows the IP header
    u8 is_fragment;
    u8 ecn;
};

// Reads the IP header at `offset`, as IpPacket::parse does. Returns 0 unless it describes exactly
// `length` bytes.
INLINE int read_inner(struct __sk_buff *skb, u32 offset, u32 length, struct inner *in)
{
    in->length = length;
    in->packets = 1;
    in->stride = length;
    if (!in->is_v6) {
        if (load_bytes(skb, offset, &in->v4, sizeof in->v4))
            return 0;
        in->header = (in->v4.version_ihl & 15) * 4;
        in->protocol = in->v4.protocol;
        in->is_fragment = (in->v4.fragment & htons(0x3fff)) != 0;
        in->ecn = in->v4.tos & 3;
        return in->v4.version_ihl >> 4 == 4 && in->header >= sizeof in->v4 && in->header <= length
            && ntohs(in->v4.length) == length;
    }
    if (load_bytes(skb, offset, &in->v6, sizeof in->v6))
        return 0;
    in->header = sizeof in->v6;
    in->protocol = in->v6.next; // an extension header, a fragment's too, is neither TCP nor UDP
    in->is_fragment = 0;
    in->ecn = in->v6.class_label >> 4 & 3;
    return in->v6.version_class >> 4 == 6 && sizeof in->v6 + ntohs(in->v6.payload) == length;
}

// Plans the segments of a TCP super packet, as SplitPlan does. Returns 0 if it may not be split.
INLINE int plan_segments(struct __sk_buff *skb, u32 offset, struct inner *in)
{
    enum { SYN = 0x02, RST = 0x04, URG = 0x20, OFFSET = 12, FLAGS = 13, HEADER = 20 };
    u32 size = skb->gso_size;
    u8 tcp[2];
    if (in->protocol != TCP || in->is_fragment)
        return 0;
    if (load_bytes(skb, offset + in->header + OFFSET, tcp, sizeof tcp))
        return 0;
    u32 header = (tcp[0] >> 4) * 4;
    in->headers = in->header + header;
    if (header < HEADER || in->headers > in->length || size == 0)
        return 0;
    u32 payload = in->length - in->headers;
    in->packets = payload > size ? (payload + size - 1) / size : 1;
    in->stride = in->headers + (payload < size ? payload : size);
    return in->packets == 1 || !(tcp[FLAGS - OFFSET] & (SYN | RST | URG));
}

INLINE void accepted(u64 *count, const struct inner *in, u32 is_super)
{
    count[PACKETS] += in->packets;
    count[BYTES] += in->length + (in->packets - 1) * (u64)in->headers;
    count[SUPER_PACKETS] += is_super;
}

// The checksum of an IPv4 header without options, if its checksum field is 0; 0 if the header is
// whole and its field is right.
INLINE be16 header_checksum(const struct ipv4 *ip)
{
    const u16 *words = (const u16 *)ip;
    u32 sum = 0;
#pragma clang loop unroll(full)
    for (int i = 0; i < 10; i++)
        sum += words[i];
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16));
}

// --- egress: from the overlay device to a peer ---------------------------------------------------

// About a second.
#define USED_SHIFT 30

// How long a flow stays on the daemon's path after its last super packet.
#define SLOW_FLOW_NS (60 * 1000000000ull)

INLINE int flow_of(struct __sk_buff *skb, const struct inner *in, struct flow *flow)
{
    if (in->is_v6) {
        __builtin_memcpy(flow->src, in->v6.src, sizeof flow->src);
        __builtin_memcpy(flow->dst, in->v6.dst, sizeof flow->dst);
    } else {
        flow->src[0] = in->v4.src;
        flow->dst[0] = in->v4.dst;
    }
    return load_bytes(skb, overlay_header + in->header, &flow->ports, sizeof flow->ports) == 0;
}

// Whether the daemon carries this UDP packet: a super packet, or a packet of a flow that had one,
// which would otherwise overtake it.
INLINE int is_udp_of_daemon(struct __sk_buff *skb, const struct inner *in, u64 now, u64 *count)
{
    struct flow flow = {};
    if (in->protocol != UDP || in->is_fragment || !flow_of(skb, in, &flow))
        return 0;
    if (skb->gso_size) {
        map_update(&slow_flows, &flow, &now, 0);
        COUNT(UDP_TRAIN);
        return 1;
    }
    u64 *last = map_lookup(&slow_flows, &flow);
    if (!last || now - *last > SLOW_FLOW_NS)
        return 0;
    COUNT(SLOW_FLOW);
    return 1;
}

INLINE int is_own_source(const struct config *cfg, const struct inner *in)
{
    const struct route *source = in->is_v6 ? lookup6(in->v6.src) : lookup4(in->v4.src);
    if (source && source->kind == LOCAL)
        return 1;
    if (!in->is_v6)
        return in->v4.src && in->v4.src == cfg->public4;
    const be32 *own = cfg->public6;
    return (own[0] | own[1] | own[2] | own[3]) && is_same6(in->v6.src, own);
}

// Puts the outer headers in front. Returns 0 and leaves the bytes as they were if the kernel refuses.
INLINE int encapsulate(struct __sk_buff *skb, const struct outer *outer)
{
    enum { FLAGS = ENCAP_L3_IPV4 | ENCAP_L4_UDP | FIXED_GSO };
    if (adjust_room(skb, OUTER, ROOM_BEHIND_MAC, FLAGS))
        return 0;
    // A packet without a link-layer header is lost in redirect_neigh.
    if (!overlay_header && change_head(skb, ETHERNET, 0))
        goto undo;
    if (store_bytes(skb, ETHERNET, outer, sizeof *outer, 0) == 0)
        return 1;
undo:
    adjust_room(skb, -OUTER, ROOM_BEHIND_MAC, FIXED_GSO);
    return 0;
}

SECTION("classifier") int egress(struct __sk_buff *skb)
{
    struct counters *counters = own_counters();
    if (!counters)
        return TCX_NEXT;
    u64 *count = counters->egress, now = 0;
    const struct config *cfg = live_config(&now);
    if (!cfg)
        PASS(OFF);

    struct inner in = {};
    in.is_v6 = skb->protocol == htons(ETH_P_IPV6);
    int is_ip = in.is_v6 || skb->protocol == htons(ETH_P_IP);
    if (!is_ip || skb->vlan_present || !read_inner(skb, overlay_header, skb->len - overlay_header, &in))
        PASS(MALFORMED);
    struct route *route = in.is_v6 ? lookup6(in.v6.dst) : lookup4(in.v4.dst);
    if (!route || route->kind != PEER)
        PASS(NO_ROUTE);
    if ((route->flags & (MAY_SEND | IS_CLEAR)) != (MAY_SEND | IS_CLEAR))
        PASS(NO_PEER);
    if (cfg->flags & VERIFY_SOURCE && !is_own_source(cfg, &in))
        PASS(SOURCE);
    if (is_udp_of_daemon(skb, &in, now, count))
        return TCX_NEXT;
    u32 is_super = skb->gso_size != 0;
    if (is_super && !plan_segments(skb, overlay_header, &in))
        PASS(SUPER_PACKET);
    // The length field of the outer header must hold a super packet too.
    if (in.stride > route->mtu || in.length > 0xffff - OUTER)
        PASS(TOO_BIG);

    struct outer outer = {
        .ip = {
            .version_ihl = 0x45,
            .tos = route->flags & ECN ? in.ecn : 0,
            .length = htons(in.length + OUTER),
            .fragment = htons(0x4000), // DF
            .ttl = 64,
            .protocol = UDP,
            .src = cfg->address,
            .dst = route->peer,
        },
        .udp = {
            .src = cfg->ports[get_hash(skb) % PORTS],
            .dst = cfg->port,
            .length = htons(in.length + (u32)sizeof(struct udp)),
        },
    };
    outer.ip.checksum = header_checksum(&outer.ip);
    u32 underlay = route->underlay;
    if (!encapsulate(skb, &outer))
        PASS(KERNEL);
    accepted(count, &in, is_super);
    // One write a second, so that CPUs do not take the cache line from each other.
    u32 used = now >> USED_SHIFT;
    if (route->used != used)
        route->used = used;
    // The mark belongs to the inner packet; the daemon's socket has none either.
    skb->mark = 0;
    return redirect_neigh(underlay, 0, 0, 0);
}

// --- ingress: from a peer to the overlay device --------------------------------------------------

// A TCP packet of this length is probably a segment of a longer transfer: the smallest MTU of IPv4
// is 576 bytes, and acknowledgements and short requests have less.
enum { LONG = 500 };

// The mark of frames between the two ends of the pair with GRO ("hsgr").
#define GRO_MARK 0x72677368

// Whether the frame holds a datagram to our address and port, in one piece.
INLINE int is_to_us(const struct __sk_buff *skb, const struct config *cfg, const struct outer *outer)
{
    return outer->ip.version_ihl == 0x45 && outer->ip.protocol == UDP && outer->ip.dst == cfg->address
        && outer->udp.dst == cfg->port && !(outer->ip.fragment & htons(0x3fff))
        && skb->pkt_type == PACKET_HOST && !skb->vlan_present;
}

// The ECN field after decapsulation, as Ecn::decapsulated has it (RFC 6040, figure 4); -1: the
// packet cannot carry the mark.
INLINE int decapsulated_ecn(u32 inner, u32 outer)
{
    enum { NOT_ECT = 0, ECT1 = 1, ECT0 = 2, CE = 3 };
    if (outer == CE)
        return inner == NOT_ECT ? -1 : CE;
    return inner == ECT0 && outer == ECT1 ? ECT1 : inner;
}

// Changes the ECN field of the inner packet. The sum over an IPv4 header stays the same, because its
// checksum changes too.
INLINE int change_ecn(struct __sk_buff *skb, u32 offset, const struct inner *in, u8 from, u8 to)
{
    if (in->is_v6) {
        u8 class_label = (in->v6.class_label & 0xcf) | to << 4;
        return store_bytes(skb, offset + 1, &class_label, 1, RECOMPUTE_CSUM) == 0;
    }
    u8 dscp = in->v4.tos & 0xfc, tos = dscp | to;
    u16 before = in->v4.version_ihl | (dscp | from) << 8, after = in->v4.version_ihl | tos << 8;
    return l3_csum_replace(skb, offset + 10, before, after, sizeof after) == 0
        && store_bytes(skb, offset + 1, &tos, 1, 0) == 0;
}

// Prepares a packet for the end of the pair where the kernel merges segments (GRO). An Ethernet
// header is still in front of it. Returns 0 if the kernel refuses.
INLINE int prepare_gro(struct __sk_buff *skb, const struct inner *in)
{
    be16 type = htons(ETH_P_IPV6);
    if (in->is_v6 && store_bytes(skb, 12, &type, sizeof type, 0))
        return 0;
    skb->mark = GRO_MARK;
    return 1;
}

SECTION("classifier") int ingress(struct __sk_buff *skb)
{
    enum { INNER = ETHERNET + OUTER };
    struct counters *counters = own_counters();
    if (!counters)
        return TCX_NEXT;
    u64 *count = counters->ingress, now = 0;
    const struct config *cfg = live_config(&now);
    if (!cfg)
        PASS(OFF);

    struct {
        struct outer outer;
        u8 first; // byte of the inner packet
    } __attribute__((packed, aligned(4))) frame;
    if (skb->protocol != htons(ETH_P_IP) || load_bytes(skb, ETHERNET, &frame, sizeof frame))
        PASS(OTHER);
    const struct outer *outer = &frame.outer;
    if (!is_to_us(skb, cfg, outer))
        PASS(OTHER);
    if (outer->udp.checksum)
        PASS(USERSPACE);
    u32 datagram = ntohs(outer->udp.length);
    int is_whole = ntohs(outer->ip.length) == sizeof(struct ipv4) + datagram
        && skb->len == ETHERNET + sizeof(struct ipv4) + datagram && !header_checksum(&outer->ip);
    if (!is_whole)
        PASS(MALFORMED);
    u32 type = frame.first >> 4;
    if (type != 4 && type != 6)
        PASS(TYPE);
    struct inner in = { .is_v6 = type == 6 };
    if (!read_inner(skb, INNER, datagram - sizeof(struct udp), &in))
        PASS(MALFORMED);

    // One look-up proves that the outer source is a peer and that the inner source belongs to it.
    const struct route *source = in.is_v6 ? lookup6(in.v6.src) : lookup4(in.v4.src);
    if (!source || (source->kind != PEER && source->kind != HOST) || source->peer != outer->ip.src)
        PASS(SOURCE);
    if (!(source->flags & IS_CLEAR))
        PASS(NO_PEER);
    const struct route *target = in.is_v6 ? lookup6(in.v6.dst) : lookup4(in.v4.dst);
    if (!target || target->kind != LOCAL)
        PASS(MISROUTED);
    u32 is_super = skb->gso_size != 0;
    if (is_super && !plan_segments(skb, INNER, &in))
        PASS(SUPER_PACKET);

    int ecn = decapsulated_ecn(in.ecn, outer->ip.tos & 3);
    if (ecn < 0) {
        count[UNMARKABLE] += in.packets;
        return TCX_DROP;
    }
    if (ecn != in.ecn && !change_ecn(skb, INNER, &in, in.ecn, ecn))
        PASS(KERNEL);
    if (adjust_room(skb, -OUTER, ROOM_BEHIND_MAC, FIXED_GSO | (in.is_v6 ? DECAP_L3_IPV6 : 0))) {
        if (ecn != in.ecn)
            change_ecn(skb, INNER, &in, ecn, in.ecn);
        PASS(KERNEL);
    }
    accepted(count, &in, is_super);
    skb->mark = 0;
    // Volatile, so that the compiler does not read from a variable offset: see COUNT.
    u32 overlay = *(const volatile u32 *)&cfg->overlay, gro = *(const volatile u32 *)&cfg->gro;
    int is_segment = in.protocol == TCP && !in.is_fragment && !is_super;
    if (is_segment && in.length >= LONG)
        COUNT(LONG_SEGMENTS);
    if (is_segment && cfg->flags & GRO_FOR_TCP && prepare_gro(skb, &in)) {
        COUNT(TO_GRO);
        return redirect(gro, 0);
    }
    return redirect(overlay, INGRESS);
}

// The far end of the pair with GRO: packets that ingress has accepted. They are delivered even if
// the fast path has just ended, since they have no outer header any more.
SECTION("classifier") int merged(struct __sk_buff *skb)
{
    u32 zero = 0;
    struct live *state = map_lookup(&live, &zero);
    if (!state || skb->mark != GRO_MARK)
        return TCX_NEXT;
    u32 active = state->active & 1;
    const struct config *cfg = map_lookup(&config, &active);
    struct counters *counters = own_counters();
    if (!cfg || !counters)
        return TCX_NEXT;
    u64 *count = counters->ingress;
    u32 segments = skb->gso_segs;
    count[FROM_GRO] += segments ? segments : 1;
    COUNT(MERGED);
    if (skb->gso_size)
        COUNT(MERGED_SUPER);
    skb->mark = 0;
    return redirect(cfg->overlay, INGRESS);
}
