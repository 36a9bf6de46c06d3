/* libzmq's side of the benches: proxy, publisher, subscriber, requester, server, each with CURVE.
 * What is measured and printed is the same as on our side; see throughput.rs and round_trip.rs. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

static void must(int ok, const char *what) {
    if (ok < 0) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(1);
    }
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *context;
static char public_key[41], secret_key[41];

static void *open_socket(int type) {
    void *socket = zmq_socket(context, type);
    int yes = 1;
    if (type == ZMQ_PUB || type == ZMQ_XPUB)
        must(zmq_setsockopt(socket, ZMQ_XPUB_NODROP, &yes, sizeof yes), "nodrop");
    return socket;
}

static void *bind_server(int type, char *endpoint, size_t bytes) {
    void *socket = open_socket(type);
    int yes = 1;
    must(zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes), "curve server");
    must(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 40), "secret key");
    must(zmq_bind(socket, "tcp://127.0.0.1:*"), "bind");
    must(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &bytes), "endpoint");
    return socket;
}

static void *connect_client(int type, const char *endpoint, const char *server_key) {
    void *socket = open_socket(type);
    must(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server_key, 40), "server key");
    must(zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public_key, 40), "public key");
    must(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 40), "secret key");
    if (type == ZMQ_SUB)
        must(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0), "subscribe");
    must(zmq_connect(socket, endpoint), "connect");
    return socket;
}

static void proxy(const char *sockets) {
    char front_endpoint[128], back_endpoint[128];
    int publish = strcmp(sockets, "publish") == 0;
    void *front = bind_server(publish ? ZMQ_XSUB : ZMQ_ROUTER, front_endpoint, sizeof front_endpoint);
    void *back = bind_server(publish ? ZMQ_XPUB : ZMQ_DEALER, back_endpoint, sizeof back_endpoint);
    printf("ready %s %s %s\n", front_endpoint, back_endpoint, public_key);
    fflush(stdout);
    zmq_proxy(front, back, NULL);
}

/* Topic and payload in one frame; the payload begins with a running number. */
static void publish(void *socket, const char *topic, size_t payload_bytes) {
    size_t topic_bytes = strlen(topic);
    char *payload = calloc(1, payload_bytes);
    for (uint64_t number = 0;; number++) {
        zmq_msg_t message;
        must(zmq_msg_init_size(&message, topic_bytes + payload_bytes), "message");
        memcpy(payload, &number, sizeof number);
        memcpy(zmq_msg_data(&message), topic, topic_bytes);
        memcpy((char *)zmq_msg_data(&message) + topic_bytes, payload, payload_bytes);
        must(zmq_msg_send(&message, socket, 0), "send");
    }
}

static void subscribe(void *socket, const char *topic, uint64_t warm_up_ns, uint64_t window_ns) {
    size_t topic_bytes = strlen(topic);
    uint64_t begin = 0, end = 0, count = 0, lost = 0, expected = 0;
    int measuring = 0;
    printf("ready\n");
    fflush(stdout);
    for (uint64_t received = 0;; received++) {
        zmq_msg_t message;
        uint64_t number;
        zmq_msg_init(&message);
        must(zmq_msg_recv(&message, socket, 0), "receive");
        memcpy(&number, (char *)zmq_msg_data(&message) + topic_bytes, sizeof number);
        lost += received > 0 && number != expected;
        expected = number + 1;
        zmq_msg_close(&message);
        count++;
        if (received == 0)
            begin = now_ns() + warm_up_ns;
        if (received % 16 != 0)
            continue;
        uint64_t now = now_ns();
        if (!measuring && now >= begin) {
            measuring = 1;
            begin = now;
            count = 0;
            end = now + window_ns;
            printf("begin\n");
            fflush(stdout);
        } else if (measuring && now >= end) {
            printf("end %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", count, now - begin, lost);
            fflush(stdout);
            measuring = 0;
            begin = UINT64_MAX;
        }
    }
}

static int by_value(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

static void receive_part(void *socket) {
    zmq_msg_t part;
    zmq_msg_init(&part);
    must(zmq_msg_recv(&part, socket, 0), "receive");
    zmq_msg_close(&part);
}

/* One in flight is a REQ socket; more are a DEALER with the empty frame that REP expects. */
static void request(void *socket, int in_flight, size_t bytes, uint64_t warm_up_ns, uint64_t window_ns) {
    char *payload = calloc(1, bytes);
    size_t samples_max = 10000000, samples = 0;
    uint64_t *times = malloc(samples_max * sizeof *times);
    uint64_t *sent = calloc((size_t)in_flight, sizeof *sent);
    uint64_t begin = 0, end = 0, now;
    int measuring = 0, dealer = in_flight > 1;
    printf("ready\n");
    fflush(stdout);
    for (uint64_t number = 0;; number++) {
        uint64_t *slot = &sent[number % (uint64_t)in_flight];
        if (number >= (uint64_t)in_flight) {
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
    printf("end %zu %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", samples, now - begin, times[samples / 2],
           times[samples - samples / 100 - 1]);
    fflush(stdout);
    /* The bench reads our processor time now and then kills us. */
    pause();
}

static void reply(void *socket) {
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        must(zmq_msg_recv(&message, socket, 0), "receive");
        must(zmq_msg_send(&message, socket, 0), "send");
    }
}

static uint64_t milliseconds(const char *text) { return strtoull(text, NULL, 10) * 1000000u; }

int main(int count, char **words) {
    const char *role = count > 1 ? words[1] : "";
    if (strcmp(role, "version") == 0) {
        int major, minor, patch;
        zmq_version(&major, &minor, &patch);
        printf("%d.%d.%d\n", major, minor, patch);
        return 0;
    }
    context = zmq_ctx_new();
    must(zmq_curve_keypair(public_key, secret_key), "keys; is libzmq built with CURVE?");
    if (strcmp(role, "proxy") == 0 && count == 3)
        proxy(words[2]);
    else if (strcmp(role, "publish") == 0 && count == 6)
        publish(connect_client(ZMQ_PUB, words[2], words[3]), words[4], strtoul(words[5], NULL, 10));
    else if (strcmp(role, "subscribe") == 0 && count == 7)
        subscribe(connect_client(ZMQ_SUB, words[2], words[3]), words[4], milliseconds(words[5]),
                  milliseconds(words[6]));
    else if (strcmp(role, "request") == 0 && count == 8) {
        int in_flight = atoi(words[4]);
        request(connect_client(in_flight > 1 ? ZMQ_DEALER : ZMQ_REQ, words[2], words[3]), in_flight,
                strtoul(words[5], NULL, 10), milliseconds(words[6]), milliseconds(words[7]));
    } else if (strcmp(role, "reply") == 0 && count == 4)
        reply(connect_client(ZMQ_REP, words[2], words[3]));
    else {
        fprintf(stderr, "unknown role `%s`, or wrong arguments\n", role);
        return 2;
    }
    return 0;
}
