/* libzmq's side of the benches: a proxy and the programs around it, each with CURVE. What is measured and
 * printed is the same as on our side; see flow.rs, round_trip.rs, open_loop.rs, idle.rs and memory.rs.
 *
 * peer ROLE name=value...
 * PEER_PUBLIC_KEY and PEER_SECRET_KEY in the environment are its keys; without them it makes a pair. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define NONE UINT64_MAX

static void must(int ok, const char *what) {
    if (ok < 0) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(1);
    }
}

/* ---- arguments ---- */

static int words_count;
static char **words;

static const char *text(const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int at = 2; at < words_count; at++)
        if (strncmp(words[at], name, length) == 0 && words[at][length] == '=')
            return words[at] + length + 1;
    if (!otherwise) {
        fprintf(stderr, "`%s=` is missing\n", name);
        exit(2);
    }
    return otherwise;
}

static uint64_t number(const char *name, const char *otherwise) {
    return strtoull(text(name, otherwise), NULL, 10);
}

static uint64_t milliseconds(const char *name, const char *otherwise) {
    return number(name, otherwise) * 1000000u;
}

/* ---- time ---- */

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t ns) {
    struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0)
        ;
}

static int by_value(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* The same place as `percentile` in clock.rs. */
static uint64_t percentile(const uint64_t *sorted, size_t count, double share) {
    size_t at = (size_t)((double)count * share);
    return count == 0 ? 0 : sorted[at < count ? at : count - 1];
}

/* ---- sockets ---- */

static void *context;
static char public_key[41], secret_key[41];

static void *open_socket(int type) {
    void *socket = zmq_socket(context, type);
    int yes = 1;
    if (!socket)
        must(-1, "socket");
    if (type == ZMQ_PUB || type == ZMQ_XPUB)
        must(zmq_setsockopt(socket, ZMQ_XPUB_NODROP, &yes, sizeof yes), "nodrop");
    return socket;
}

static void *bind_server(int type, char *endpoint, size_t bytes) {
    void *socket = open_socket(type);
    int yes = 1, backlog = 4096;
    must(zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes), "curve server");
    must(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 40), "secret key");
    must(zmq_setsockopt(socket, ZMQ_BACKLOG, &backlog, sizeof backlog), "backlog");
    must(zmq_bind(socket, "tcp://127.0.0.1:*"), "bind");
    must(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &bytes), "endpoint");
    return socket;
}

static void *connect_client(int type, const char *prefix) {
    void *socket = open_socket(type);
    must(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, text("server-key", NULL), 40), "server key");
    must(zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public_key, 40), "public key");
    must(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 40), "secret key");
    if (type == ZMQ_SUB)
        must(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, prefix, strlen(prefix)), "subscribe");
    must(zmq_connect(socket, text("endpoint", NULL)), "connect");
    return socket;
}

static void say_ready(void) {
    printf("ready\n");
    fflush(stdout);
}

/* The bench reads our processor time now and then kills us. */
static void wait_to_be_killed(void) {
    for (;;)
        pause();
}

static void proxy(void) {
    char front_endpoint[128], back_endpoint[128];
    int publish = strcmp(text("sockets", NULL), "publish") == 0;
    void *front = bind_server(publish ? ZMQ_XSUB : ZMQ_ROUTER, front_endpoint, sizeof front_endpoint);
    void *back = bind_server(publish ? ZMQ_XPUB : ZMQ_DEALER, back_endpoint, sizeof back_endpoint);
    printf("ready %s %s %s\n", front_endpoint, back_endpoint, public_key);
    fflush(stdout);
    zmq_proxy(front, back, NULL);
}

/* ---- a flow: flow.rs; `messages` and `take`: memory.rs ---- */

/* `frames=1`: topic and payload in one frame, libzmq's fastest form; 2: a frame each. */
static void send_message(void *socket, const char *topic, const void *payload, size_t bytes, int frames) {
    size_t topic_bytes = strlen(topic), front = frames == 1 ? topic_bytes : 0;
    zmq_msg_t message;
    if (frames == 2)
        must(zmq_send(socket, topic, topic_bytes, ZMQ_SNDMORE), "send");
    must(zmq_msg_init_size(&message, front + bytes), "message");
    memcpy(zmq_msg_data(&message), topic, front);
    memcpy((char *)zmq_msg_data(&message) + front, payload, bytes);
    must(zmq_msg_send(&message, socket, 0), "send");
}

/* The payload, valid until the next call. All topics of a flow are of one length. */
static const char *receive_payload(void *socket, zmq_msg_t *message, size_t topic_bytes, int frames) {
    zmq_msg_close(message);
    zmq_msg_init(message);
    must(zmq_msg_recv(message, socket, 0), "receive");
    if (frames == 2)
        must(zmq_msg_recv(message, socket, 0), "receive");
    return (char *)zmq_msg_data(message) + (frames == 1 ? topic_bytes : 0);
}

static void topic_name(char *name, size_t bytes, uint64_t at, uint64_t topics) {
    const char *base = text("topic", NULL);
    if (topics == 1)
        snprintf(name, bytes, "%s", base);
    else
        snprintf(name, bytes, "%s/%04" PRIu64, base, at);
}

static void publish(void) {
    uint64_t topics = number("topics", "1"), stream = number("publisher", "0") * topics, bytes = number("bytes", NULL);
    uint64_t messages = number("messages", "18446744073709551615");
    int frames = (int)number("frames", "1");
    char(*names)[64] = calloc(topics, sizeof *names), *payload = calloc(1, bytes);
    void *socket = connect_client(ZMQ_PUB, NULL);
    for (uint64_t at = 0; at < topics; at++)
        topic_name(names[at], sizeof names[at], at, topics);
    for (uint64_t running = 0; running < messages; running++) {
        for (uint64_t at = 0; at < topics; at++) {
            uint32_t of = (uint32_t)(stream + at);
            memcpy(payload, &running, sizeof running);
            memcpy(payload + 8, &of, sizeof of);
            send_message(socket, names[at], payload, bytes, frames);
        }
    }
    wait_to_be_killed();
}

static void take(void) {
    uint64_t messages = number("messages", NULL), bytes = 0;
    void *socket = connect_client(ZMQ_SUB, "");
    say_ready();
    for (; messages > 0; messages--) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        must(zmq_msg_recv(&message, socket, 0), "receive");
        bytes += zmq_msg_size(&message);
        zmq_msg_close(&message);
    }
    printf("took %" PRIu64 "\n", bytes);
    fflush(stdout);
    wait_to_be_killed();
}

static void subscribe(void) {
    uint64_t topics = number("topics", "1"), streams = topics * number("publishers", "1");
    uint64_t warm_up_ns = milliseconds("warm-up-ms", NULL), window_ns = milliseconds("window-ms", NULL);
    uint64_t clock_every = number("clock-every", "16");
    uint64_t begin = 0, end = 0, count = 0, lost = 0, lost_before = 0;
    uint64_t *expected = malloc(streams * sizeof *expected);
    int measuring = 0, frames = (int)number("frames", "1");
    char name[64];
    topic_name(name, sizeof name, 0, topics);
    size_t topic_bytes = strlen(name);
    void *socket = connect_client(ZMQ_SUB, "");
    zmq_msg_t message;
    zmq_msg_init(&message);
    for (uint64_t at = 0; at < streams; at++)
        expected[at] = NONE;
    say_ready();
    for (uint64_t received = 0;; received++) {
        const char *payload = receive_payload(socket, &message, topic_bytes, frames);
        uint64_t running;
        uint32_t of;
        memcpy(&running, payload, sizeof running);
        memcpy(&of, payload + 8, sizeof of);
        if (of >= streams || (expected[of] != NONE && running < expected[of])) {
            fprintf(stderr, "message %" PRIu64 " of stream %u came out of order\n", running, of);
            exit(1);
        }
        lost += expected[of] == NONE ? 0 : running - expected[of];
        expected[of] = running + 1;
        count++;
        if (received == 0)
            begin = now_ns() + warm_up_ns;
        if (received % clock_every != 0)
            continue;
        uint64_t now = now_ns();
        if (!measuring && now >= begin) {
            measuring = 1;
            begin = now;
            end = now + window_ns;
            lost_before = lost;
            count = lost = 0;
            printf("begin\n");
            fflush(stdout);
        } else if (measuring && now >= end) {
            printf("end %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", count, now - begin, lost, lost_before);
            fflush(stdout);
            measuring = 0;
            begin = NONE;
        }
    }
}

/* ---- open loop: open_loop.rs ---- */

static void pace(void) {
    uint64_t bytes = number("bytes", NULL), interval = 1000000000u / number("rate", NULL);
    const char *topic = text("topic", NULL);
    char *payload = calloc(1, bytes);
    void *socket = connect_client(ZMQ_PUB, NULL);
    prctl(PR_SET_TIMERSLACK, 1);
    uint64_t start = now_ns() + 300000000u;
    for (uint64_t running = 0;; running++) {
        uint64_t due = start + running * interval, sent = now_ns();
        if (sent < due) {
            sleep_until(due);
            sent = now_ns();
        }
        memcpy(payload, &running, 8);
        memcpy(payload + 8, &due, 8);
        memcpy(payload + 16, &sent, 8);
        send_message(socket, topic, payload, bytes, 1);
    }
}

static void latency(void) {
    uint64_t warm_up_ns = milliseconds("warm-up-ms", NULL), window_ns = milliseconds("window-ms", NULL);
    uint64_t begin = 0, expected = NONE, lost = 0;
    size_t topic_bytes = strlen(text("topic", NULL)), samples = 0, samples_max = 10000000;
    uint64_t *times = malloc(samples_max * sizeof *times), *late = malloc(samples_max * sizeof *late),
             *since_sent = malloc(samples_max * sizeof *since_sent);
    int measuring = 0;
    void *socket = connect_client(ZMQ_SUB, "");
    zmq_msg_t message;
    zmq_msg_init(&message);
    say_ready();
    for (;;) {
        const char *payload = receive_payload(socket, &message, topic_bytes, 1);
        uint64_t now = now_ns(), running, due, sent;
        memcpy(&running, payload, 8);
        memcpy(&due, payload + 8, 8);
        memcpy(&sent, payload + 16, 8);
        lost += expected != NONE && running != expected;
        expected = running + 1;
        if (begin == 0)
            begin = due + warm_up_ns;
        if (due < begin)
            continue;
        if (!measuring) {
            measuring = 1;
            printf("begin\n");
            fflush(stdout);
        }
        if (due >= begin + window_ns || samples == samples_max)
            break;
        late[samples] = sent - due;
        since_sent[samples] = now - sent;
        times[samples++] = now - due;
    }
    qsort(times, samples, sizeof *times, by_value);
    qsort(late, samples, sizeof *late, by_value);
    qsort(since_sent, samples, sizeof *since_sent, by_value);
    printf("end %zu %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", samples, lost,
           percentile(times, samples, 0.5), percentile(times, samples, 0.99), percentile(times, samples, 0.999),
           times[samples - 1], percentile(since_sent, samples, 0.5), percentile(late, samples, 0.5));
    fflush(stdout);
    wait_to_be_killed();
}

/* ---- request and reply: round_trip.rs ---- */

static void receive_part(void *socket) {
    zmq_msg_t part;
    zmq_msg_init(&part);
    must(zmq_msg_recv(&part, socket, 0), "receive");
    zmq_msg_close(&part);
}

/* One in flight is a REQ socket; more are a DEALER with the empty frame that REP expects. */
static void request(void) {
    uint64_t in_flight = number("in-flight", NULL), bytes = number("bytes", NULL);
    uint64_t warm_up_ns = milliseconds("warm-up-ms", NULL), window_ns = milliseconds("window-ms", NULL);
    int measuring = 0, dealer = in_flight > 1;
    void *socket = connect_client(dealer ? ZMQ_DEALER : ZMQ_REQ, NULL);
    char *payload = calloc(1, bytes);
    size_t samples_max = 10000000, samples = 0;
    uint64_t *times = malloc(samples_max * sizeof *times), *sent = calloc(in_flight, sizeof *sent);
    uint64_t begin = 0, end = 0, now;
    say_ready();
    for (uint64_t running = 0;; running++) {
        uint64_t *slot = &sent[running % in_flight];
        if (running >= in_flight) {
            if (dealer)
                receive_part(socket);
            receive_part(socket);
            now = now_ns();
            if (begin == 0)
                begin = now + warm_up_ns;
            if (measuring && samples < samples_max)
                times[samples++] = now - *slot;
            if (!measuring && now >= begin) {
                measuring = 1;
                begin = now;
                end = now + window_ns;
                printf("begin\n");
                fflush(stdout);
            } else if (measuring && now >= end) {
                break;
            }
        }
        *slot = now_ns();
        if (dealer)
            must(zmq_send(socket, "", 0, ZMQ_SNDMORE), "send");
        must(zmq_send(socket, payload, bytes, 0), "send");
    }
    qsort(times, samples, sizeof *times, by_value);
    printf("end %zu %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", samples, now - begin, percentile(times, samples, 0.5),
           percentile(times, samples, 0.99));
    fflush(stdout);
    wait_to_be_killed();
}

static void reply(void) {
    void *socket = connect_client(ZMQ_REP, NULL);
    say_ready();
    for (;;) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        must(zmq_msg_recv(&message, socket, 0), "receive");
        must(zmq_msg_send(&message, socket, 0), "send");
    }
}

/* ---- many idle subscribers: idle.rs ---- */

/* Each subscribes to a topic of its own, so that every subscription reaches the watcher. */
static void idle(void) {
    uint64_t count = number("count", NULL);
    uint64_t began = now_ns();
    for (uint64_t at = 0; at < count; at++) {
        char name[64];
        topic_name(name, sizeof name, at, count);
        connect_client(ZMQ_SUB, name);
    }
    printf("began %" PRIu64 "\n", began);
    fflush(stdout);
    wait_to_be_killed();
}

/* A publisher that knows its subscribers: says when all subscriptions are with it. */
static void watch(void) {
    uint64_t count = number("count", NULL);
    void *socket = connect_client(ZMQ_XPUB, NULL);
    say_ready();
    while (count > 0) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        must(zmq_msg_recv(&message, socket, 0), "receive");
        count -= zmq_msg_size(&message) > 0 && *(char *)zmq_msg_data(&message) == 1;
        zmq_msg_close(&message);
    }
    printf("all %" PRIu64 "\n", now_ns());
    fflush(stdout);
    wait_to_be_killed();
}

/* ---- */

static void take_keys(void) {
    const char *public = getenv("PEER_PUBLIC_KEY"), *secret = getenv("PEER_SECRET_KEY");
    must(zmq_curve_keypair(public_key, secret_key), "keys; is libzmq built with CURVE?");
    if (public && secret) {
        snprintf(public_key, sizeof public_key, "%s", public);
        snprintf(secret_key, sizeof secret_key, "%s", secret);
    }
}

/* As many sockets as the bench asks for, in the proxy as in its clients. */
static void raise_limits(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    must(zmq_ctx_set(context, ZMQ_MAX_SOCKETS, 16384), "sockets");
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(void);
    } roles[] = {{"proxy", proxy}, {"publish", publish}, {"subscribe", subscribe}, {"take", take}, {"pace", pace}, {"latency", latency},
                 {"request", request}, {"reply", reply}, {"idle", idle}, {"watch", watch}};
    const char *role = count > 1 ? arguments[1] : "";
    words_count = count;
    words = arguments;
    if (strcmp(role, "version") == 0) {
        int major, minor, patch;
        zmq_version(&major, &minor, &patch);
        printf("%d.%d.%d\n", major, minor, patch);
        return 0;
    }
    context = zmq_ctx_new();
    raise_limits();
    take_keys();
    for (size_t at = 0; at < sizeof roles / sizeof *roles; at++)
        if (strcmp(role, roles[at].name) == 0) {
            roles[at].run();
            return 0;
        }
    fprintf(stderr, "unknown role `%s`\n", role);
    return 2;
}
