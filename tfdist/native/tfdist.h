/* The C interface of tfdist's native core: moves bytes and adds them; decides nothing.
 *
 * Python forms the connections and makes the plans (tfdist/collectives); a group executes them on one background
 * thread of its own. Every function may be called from any thread. Nothing here needs Python or TensorFlow.
 */
#ifndef TFDIST_H_
#define TFDIST_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TFDIST_EXPORT __attribute__((visibility("default")))

/* Element types of a work buffer. TFDIST_BYTE only moves; the others also reduce. */
enum tfdist_dtype {
  TFDIST_BYTE = 0,
  TFDIST_FLOAT32 = 1,
  TFDIST_FLOAT64 = 2,
  TFDIST_BFLOAT16 = 3,
  TFDIST_FLOAT16 = 4,
  TFDIST_INT32 = 5,
  TFDIST_INT64 = 6,
};

enum tfdist_reduce { TFDIST_SUM = 0, TFDIST_MEAN = 1, TFDIST_MIN = 2, TFDIST_MAX = 3, TFDIST_PRODUCT = 4 };

/* Step kinds of a plan; four int32 a step: kind, peer, chunk, source (copy only). */
enum tfdist_step_kind {
  TFDIST_SEND = 0,
  TFDIST_RECEIVE = 1,
  TFDIST_RECEIVE_REDUCE = 2,
  TFDIST_COPY = 3,
  TFDIST_RECEIVE_REDUCE_LAST = 4, /* all ranks are in the chunk then: a mean is divided here */
};

enum tfdist_code {
  TFDIST_OK = 0,
  TFDIST_TIMEOUT = 1,
  TFDIST_LOST = 2,
  TFDIST_MISMATCH = 3,
  TFDIST_CLOSED = 4,
  TFDIST_INVALID = 5,
  TFDIST_STALE = 6,      /* a gradient for other parameters than the server has */
  TFDIST_NOT_FINITE = 7, /* a gradient holds NaN or infinity */
  TFDIST_SERVER_LOST = 8,
  TFDIST_RAISED = 9,     /* a peer has left and said why */
  TFDIST_BELOW_MINIMUM = 10, /* too few members are left */
};

typedef struct tfdist_group tfdist_group;

typedef struct {
  int32_t rank, world_size;
  const int* sockets;          /* connected, authenticated; `sockets_per_peer` of each peer, -1 at `rank`; the group owns them */
  int32_t sockets_per_peer;
  const int* segments;         /* of each rank whose memory is shared, and of this rank: from tfdist_segment_create; else -1;
                                  NULL: none. They are mapped here and may be closed afterwards */
  uint32_t generation;
  double timeout_seconds;
  int32_t is_eager;            /* data moves while nobody waits, which needs a core beside those that compute */
  int32_t is_crowded;          /* more ranks than cores: whoever waits lets the others run */
  int32_t is_elastic;          /* members may be lost, and what they were at is done again without them (elastic/) */
  const int32_t* slots;        /* by which users know the ranks; NULL: themselves */
  int32_t has_empty_slots;     /* some slots have no rank: their chunks read as zeros */
  double heartbeat_seconds;    /* a peer that has been silent for so long, though asked, is lost; 0: silence proves nothing */
} tfdist_group_options;

typedef struct {
  void* data;
  int64_t elements;
} tfdist_span;

typedef struct {
  int32_t plan;   /* from tfdist_group_load_plan */
  int32_t dtype;  /* tfdist_dtype */
  int32_t wire_dtype; /* what float32 travels as: TFDIST_BFLOAT16 or TFDIST_FLOAT16; TFDIST_BYTE: itself */
  int32_t reduce; /* tfdist_reduce */
  double scale;   /* what inputs are multiplied by while they are packed; 0 makes zeros of whatever they hold */
  double divisor; /* of TFDIST_MEAN: what the sum is divided by, equal on all ranks; 0: the number of ranks */
  uint64_t channel;  /* operations pair up by (channel, how many the channel has seen) */
  int64_t step;      /* must be equal on all ranks; -1 where there is none */
  const char* description; /* what ranks must agree on; shown in errors */
  void* work;        /* work buffer of the caller, used in place; NULL: one from the pool */
  int64_t elements;  /* of the work buffer */
  const int64_t* chunk_offsets; /* first element of each chunk and the end; NULL: equal chunks */
  int64_t input_offset; /* element of the work buffer at which the inputs are packed */
} tfdist_operation;

/* NULL where the options make no sense or a segment cannot be mapped. */
TFDIST_EXPORT tfdist_group* tfdist_group_create(const tfdist_group_options* options);
/* A new segment of shared memory: its descriptor, or -1 where there are none. `nonce`: 16 bytes that stand at offset 16,
 * by which a peer knows that it has opened the right one. */
TFDIST_EXPORT int32_t tfdist_segment_create(int32_t rank, int32_t world_size, const unsigned char* nonce);
/* How long any wait may last from now on. */
TFDIST_EXPORT void tfdist_group_set_timeout(tfdist_group* group, double seconds);
TFDIST_EXPORT void tfdist_group_release(tfdist_group* group);
/* A group is also known by a number, which TensorFlow graphs hold: it may outlive the group. */
TFDIST_EXPORT int64_t tfdist_group_id(tfdist_group* group);
/* Retained (release it), or NULL where there is no such group any more. */
TFDIST_EXPORT tfdist_group* tfdist_group_find(int64_t id);
TFDIST_EXPORT int64_t tfdist_element_bytes(int32_t dtype);
/* Says goodbye to the peers (with `failure`: that this rank failed, and why) and stops the thread. Idempotent. */
TFDIST_EXPORT void tfdist_group_close(tfdist_group* group, const char* failure);
TFDIST_EXPORT int32_t tfdist_group_load_plan(tfdist_group* group, const int32_t* steps, int32_t num_steps,
                                             int32_t num_chunks);

/* Takes `inputs` and returns a ticket (> 0), or minus a tfdist_code. Does not block. With `outputs`, one an input, an
 * input is reduced where its output lies (which may be its own memory); those whose data is NULL, and all where
 * `outputs` is NULL, are packed into the work buffer. */
TFDIST_EXPORT int64_t tfdist_start(tfdist_group* group, const tfdist_operation* operation, const tfdist_span* inputs,
                                   int32_t num_inputs, const tfdist_span* outputs);
/* Blocks until the operation is finished, at most `timeout_seconds`; < 0 means the group's. With `give_up` a timeout
 * fails the whole group and names who has not arrived; without it the caller may ask again. */
TFDIST_EXPORT int32_t tfdist_wait(tfdist_group* group, int64_t ticket, double timeout_seconds, int32_t give_up);
/* The same for several operations, which an elastic group commits together. */
TFDIST_EXPORT int32_t tfdist_wait_all(tfdist_group* group, const int64_t* tickets, int32_t num_tickets,
                                      double timeout_seconds, int32_t give_up);
/* Unpacks a finished operation into `outputs`, but for what lies there already, and forgets the ticket; of one that failed it only forgets the ticket. */
TFDIST_EXPORT int32_t tfdist_finish(tfdist_group* group, int64_t ticket, const tfdist_span* outputs,
                                    int32_t num_outputs);
/* How many bytes tfdist_start has copied or scaled so far, of all that was not reduced where it lay. */
TFDIST_EXPORT int64_t tfdist_group_copied_bytes(tfdist_group* group);
/* Start, wait and finish in place on `operation->work`: TFDIST_OK, minus a tfdist_code, or after `timeout_seconds` the
 * ticket, to be waited for. */
TFDIST_EXPORT int64_t tfdist_run(tfdist_group* group, const tfdist_operation* operation, double timeout_seconds);
/* The first failure of the group: its code, the lost peer (-1: none) and the text, cut to `capacity`. */
TFDIST_EXPORT int32_t tfdist_group_error(tfdist_group* group, int32_t* peer, char* text, int64_t capacity);

/* Elastic groups only; other groups answer TFDIST_INVALID or 0. See elastic/elastic.h.
 * The plan of the all-reduce (TFDIST_MAX of four int64) by which operations are committed: to be set before the first. */
TFDIST_EXPORT int32_t tfdist_group_set_commit_plan(tfdist_group* group, int32_t plan);
/* Blocks until the group's present connections have failed: the code, or TFDIST_OK when time is up. */
TFDIST_EXPORT int32_t tfdist_group_await_failure(tfdist_group* group, double timeout_seconds);
/* Lines "open <channel> <sequence>", "committed <channel> <count>" and "flag <index> <number>", cut to `capacity`; returns
 * their length. Nothing is committed between this and tfdist_group_reform. */
TFDIST_EXPORT int64_t tfdist_group_report(tfdist_group* group, char* text, int64_t capacity);
/* Connections of the next generation; then its plans, in the order of the present ones. */
TFDIST_EXPORT int32_t tfdist_group_prepare(tfdist_group* group, const tfdist_group_options* options);
TFDIST_EXPORT int32_t tfdist_group_load_next_plan(tfdist_group* group, const int32_t* steps, int32_t num_steps,
                                                  int32_t num_chunks);
/* They take over: of each channel `counts` operations have happened and are kept, all others are done again. With
 * `starts_anew` nothing is open, and all ranks, new ones too, count operations from 0 again. */
TFDIST_EXPORT int32_t tfdist_group_reform(tfdist_group* group, const uint64_t* channels, const int64_t* counts,
                                          int32_t num_channels, int32_t starts_anew);
/* The group cannot go on: every wait ends with this. */
TFDIST_EXPORT void tfdist_group_give_up(tfdist_group* group, int32_t code, int32_t peer, const char* text);
/* The generation in which what was committed last was done. */
TFDIST_EXPORT uint32_t tfdist_group_committed_generation(tfdist_group* group);
TFDIST_EXPORT uint32_t tfdist_group_step_generation(tfdist_group* group); /* of what belongs to a step */
/* From now on the divisors of means are right for the members of that generation. */
TFDIST_EXPORT void tfdist_group_trust(tfdist_group* group);
/* Numbers 0..3: every commit tells each member the maximum over the members of what they have set. */
TFDIST_EXPORT void tfdist_group_set_flag(tfdist_group* group, int32_t index, int64_t value);
TFDIST_EXPORT int64_t tfdist_group_flag(tfdist_group* group, int32_t index);
/* What a commit has told another member; before tfdist_group_reform, which may keep what was committed then. */
TFDIST_EXPORT void tfdist_group_learn_flag(tfdist_group* group, int32_t index, int64_t value);
/* For tests: cuts the connection to a peer (its rank in the present generation); raises a signal in the wait for the
 * operations of a step, at point 0 (handed over), 1 (done, not committed) or 2 (committed). */
TFDIST_EXPORT void tfdist_group_drop(tfdist_group* group, int32_t peer);
/* For so long peers are asked whether they live as if an operation waited for them. */
TFDIST_EXPORT void tfdist_group_watch(tfdist_group* group, double seconds);
TFDIST_EXPORT void tfdist_group_set_fault(tfdist_group* group, int32_t point, int64_t step, int32_t number);

/* How fast this machine moves and adds: memcpy, and sums of float32 (bytes of one array). Each call measures anew, some
 * 5 ms; depends on no group. */
TFDIST_EXPORT double tfdist_measure_copy_seconds_per_byte(void);
TFDIST_EXPORT double tfdist_measure_reduce_seconds_per_byte(void);
/* The instruction set that reductions use, such as "avx2". */
TFDIST_EXPORT const char* tfdist_instruction_set(void);

/* What a parameter server does with a gradient: the update rules of keras.optimizers, and ADD (theta += gradient at any
 * learning rate). `parameters`, in order:
 *   SGD       momentum
 *   ADAM      beta_1, beta_2, epsilon; ADAMAX and NADAM too
 *   ADAGRAD   initial_accumulator_value, epsilon
 *   RMSPROP   rho, momentum, epsilon
 *   ADADELTA  rho, epsilon
 *   FTRL      learning_rate_power, initial_accumulator_value, l1, l2 and l2_shrinkage regularization_strength, beta
 *   LION      beta_1, beta_2 */
enum tfdist_rule_kind {
  TFDIST_RULE_ADD = 0,
  TFDIST_RULE_SGD = 1,
  TFDIST_RULE_ADAM = 2,
  TFDIST_RULE_ADAGRAD = 3,
  TFDIST_RULE_RMSPROP = 4,
  TFDIST_RULE_ADADELTA = 5,
  TFDIST_RULE_ADAMAX = 6,
  TFDIST_RULE_NADAM = 7,
  TFDIST_RULE_FTRL = 8,
  TFDIST_RULE_LION = 9,
};
enum tfdist_rule_flag { TFDIST_RULE_NESTEROV = 1, TFDIST_RULE_AMSGRAD = 2, TFDIST_RULE_CENTERED = 4 };
enum { TFDIST_RULE_SCALARS = 4 };

typedef struct {
  int32_t kind;  /* tfdist_rule_kind */
  int32_t flags; /* tfdist_rule_flag, of SGD, ADAM and RMSPROP */
  double parameters[6];
} tfdist_rule;

/* How many arrays as large as the parameter the rule keeps, in the order of optimizer.variables (rule.h lists them);
 * minus a tfdist_code for no rule. */
TFDIST_EXPORT int32_t tfdist_rule_num_slots(const tfdist_rule* rule);
TFDIST_EXPORT double tfdist_rule_initial_slot_value(const tfdist_rule* rule, int32_t slot);
/* Whether rows without a gradient stay as they are; whether only the sum of rows with equal index counts. (rule.h) */
TFDIST_EXPORT int32_t tfdist_rule_touches_only_rows(const tfdist_rule* rule, double weight_decay);
TFDIST_EXPORT int32_t tfdist_rule_is_linear_in_gradient(const tfdist_rule* rule);
/* The state of a tensor besides its slots, TFDIST_RULE_SCALARS doubles: Nadam's u_product as float64 and as float32 and
 * the number of steps it is the product of. To go on from a Keras optimizer: its u_product twice, its iterations. */
TFDIST_EXPORT void tfdist_rule_initialize(const tfdist_rule* rule, double* scalars);
/* One update of a whole tensor of TFDIST_FLOAT32 or TFDIST_FLOAT64: TFDIST_OK, or minus a tfdist_code. t = 1, 2, ...:
 * Keras's iterations + 1. */
TFDIST_EXPORT int32_t tfdist_rule_apply(const tfdist_rule* rule, int32_t dtype, double learning_rate,
                                        double weight_decay, int64_t t, double* scalars, void* theta,
                                        void* const* slots, const void* gradient, int64_t n);
/* The same with a gradient of whole rows, `values[i]` that of row `rows[i]`. As Keras does it, or, `is_lazy`, without a
 * look at the other rows. */
TFDIST_EXPORT int32_t tfdist_rule_apply_rows(const tfdist_rule* rule, int32_t dtype, double learning_rate,
                                             double weight_decay, int64_t t, double* scalars, void* theta,
                                             void* const* slots, const int64_t* rows, const void* values,
                                             int64_t num_rows, int64_t row_elements, int64_t num_rows_of_theta,
                                             int32_t is_lazy);

/* The parameter server: keeps stores (the tensors of one optimizer), each tensor in shards, and serves connections that
 * Python has authenticated, every one by a thread of its own. */
enum tfdist_mode { TFDIST_ASYNCHRONOUS = 0, TFDIST_BOUNDED = 1, TFDIST_SYNCHRONOUS = 2 };

typedef struct {
  const char* name;
  int32_t dtype;
  int32_t decays;       /* weight decay applies to it */
  int32_t is_hosted;    /* its gradients go to the store's host; otherwise FLOAT32 or FLOAT64 */
  int32_t reserved;
  int64_t elements;
  int64_t row_elements; /* of the tensor: elements is a multiple */
  tfdist_rule rule;
} tfdist_shard;

typedef struct {
  int32_t shard;
  const void* values;    /* dense, or those of the rows */
  const int64_t* rows;   /* NULL: dense */
  int64_t num_rows;
} tfdist_hosted_gradient;

/* Applies one update: TFDIST_OK, or a tfdist_code and why. */
typedef int32_t (*tfdist_host)(void* context, const tfdist_hosted_gradient* gradients, int32_t num_gradients,
                               double learning_rate, char* text, int64_t capacity);

typedef struct {
  int32_t mode;            /* tfdist_mode */
  int32_t num_workers;
  int32_t staleness_bound; /* BOUNDED: how many steps a worker may be ahead of the slowest */
  int32_t backup_workers;  /* SYNCHRONOUS: so many gradients need not come */
  int32_t is_lazy;         /* rows: only those touched move */
  int32_t num_step_weights;
  int32_t recovers;        /* a worker that is lost is no failure for the others; one that takes its place excludes it */
  int32_t reserved;
  const double* step_weights;   /* by staleness: what the learning rate is multiplied by; one at least */
  double weight_decay;
  double average_momentum;      /* of the moving average of the parameters; < 0: none */
  int64_t average_overwrites;
  double compensation;          /* lambda of delay compensation; 0: none */
  double compensation_decay;    /* m of the adaptive kind; < 0: constant */
  tfdist_host host;             /* NULL: the shards' rules apply */
  void* host_context;
} tfdist_store_options;

typedef struct {
  int64_t pushes, dropped;
  int64_t bytes_received, bytes_sent; /* of all stores, in shared memory too */
  uint64_t sequence;                  /* of the last push that counted: a client goes on from there */
  double waited_seconds;
  double seconds;         /* from the first push to the last */
  int32_t num_staleness;  /* how many counts there are; the caller's array takes as many as it has room for */
} tfdist_worker_record;

typedef struct tfdist_server tfdist_server;
TFDIST_EXPORT tfdist_server* tfdist_server_create(double timeout_seconds);
/* Ends all connections, waits for their threads. */
TFDIST_EXPORT void tfdist_server_release(tfdist_server* server);
/* The number of the new store, or minus a tfdist_code. */
TFDIST_EXPORT int32_t tfdist_server_add_store(tfdist_server* server, const tfdist_store_options* options,
                                              const tfdist_shard* shards, int32_t num_shards);
/* Maps the window of shared memory (behind a head of 4096 bytes) in which a worker's dense values travel. */
TFDIST_EXPORT int32_t tfdist_server_share_window(tfdist_server* server, int32_t store, int32_t worker, int32_t descriptor);
/* Serves an authenticated socket, which the server owns from now on. `client` is common to the sockets of one client of that
 * worker: one that closes does not make a later one inactive. */
TFDIST_EXPORT int32_t tfdist_server_serve(tfdist_server* server, int32_t descriptor, int32_t worker, uint64_t client);
/* Only `client` speaks for the worker from here on: what an earlier one pushes is refused, and does not count any more. */
TFDIST_EXPORT void tfdist_server_join(tfdist_server* server, int32_t store, int32_t worker, uint64_t client);
/* The parameters are new ones, which have seen `updates`. */
TFDIST_EXPORT void tfdist_server_begin_generation(tfdist_server* server, int32_t store, uint64_t generation, int64_t updates);
TFDIST_EXPORT uint64_t tfdist_server_generation(tfdist_server* server, int32_t store);
TFDIST_EXPORT int64_t tfdist_server_updates(tfdist_server* server, int32_t store);
TFDIST_EXPORT void tfdist_server_set_active(tfdist_server* server, int32_t store, int32_t worker, uint64_t client,
                                            int32_t is_active);
/* Array `slot` of a shard (0: the parameters, then the rule's slots, then the moving average), or NULL. */
TFDIST_EXPORT void* tfdist_server_array(tfdist_server* server, int32_t store, int32_t shard, int32_t slot);
/* TFDIST_RULE_SCALARS doubles. */
TFDIST_EXPORT double* tfdist_server_scalars(tfdist_server* server, int32_t store, int32_t shard);
/* The state of a shard, or with shard -1 of the store itself, to be saved before its shards: returns its size, and writes
 * it where `capacity` suffices. */
TFDIST_EXPORT int64_t tfdist_server_save(tfdist_server* server, int32_t store, int32_t shard, void* buffer, int64_t capacity);
/* TFDIST_OK, or TFDIST_MISMATCH: it is the state of something else. */
TFDIST_EXPORT int32_t tfdist_server_load(tfdist_server* server, int32_t store, int32_t shard, const void* buffer,
                                         int64_t bytes);
/* What was loaded is newer than whatever a worker may have. `incarnation`: of the server, higher each time. */
TFDIST_EXPORT void tfdist_server_supersede(tfdist_server* server, int32_t store, int32_t incarnation);
/* After loading: nobody is served until the workers that were there have offered what they have, or for so long. */
TFDIST_EXPORT void tfdist_server_await_offers(tfdist_server* server, int32_t store, double seconds);
/* While it is held, which is until the same thread lets go, the host gets no gradient. */
TFDIST_EXPORT void tfdist_server_hold_host(tfdist_server* server, int32_t store, int32_t is_held);
TFDIST_EXPORT int64_t tfdist_server_version(tfdist_server* server, int32_t store, int32_t shard);
TFDIST_EXPORT void tfdist_server_record(tfdist_server* server, int32_t store, int32_t worker, tfdist_worker_record* record,
                                        int64_t* staleness, int32_t capacity);

/* The worker's side. */
typedef struct {
  int32_t server, shard;
  int64_t begin, elements;
} tfdist_client_part;

typedef struct {
  const char* name;
  int32_t dtype;
  int32_t num_parts;
  int64_t row_elements;
  const tfdist_client_part* parts; /* in the order of `begin` */
} tfdist_client_tensor;

typedef struct {
  const tfdist_client_tensor* tensors;
  int32_t num_tensors;
  const int32_t* numbers;       /* by server: the store's number there */
  const int32_t* windows;       /* by server: a file that both sides map, or -1; NULL: none */
  const int64_t* window_bytes;  /* by server */
  uint64_t sequence;            /* of this worker's last push that counted, by tfdist_worker_record */
  int32_t num_workers;          /* with whom it stands a server that is started again; 0: it does not */
  int32_t reserved;
} tfdist_client_store;

typedef struct {
  int32_t tensor;
  int32_t reserved;
  const void* gradient;
  const void* current; /* what `fresh` becomes while the answer to the first push is under way */
  void* fresh;         /* may be the memory of the gradient */
} tfdist_exchange_dense;

typedef struct {
  int32_t tensor;
  int32_t reserved;
  const int64_t* indices;
  const void* values;
  int64_t num_rows;
  const void* current;
  void* fresh; /* the whole tensor, or NULL */
} tfdist_exchange_rows;

enum tfdist_not_finite { TFDIST_RAISE = 0, TFDIST_SKIP = 1, TFDIST_PASS = 2 };

typedef struct {
  const tfdist_exchange_dense* dense;
  const tfdist_exchange_rows* rows;
  int32_t num_dense, num_rows;
  double learning_rate;
  double weight;
  int32_t is_sum;
  int32_t is_pushed;      /* 0: only pulls */
  int32_t prefetch;       /* the answer to the push before is taken, this one's at the next call */
  int32_t is_synchronous; /* others wait for this worker */
  int32_t not_finite;     /* tfdist_not_finite */
  int32_t offers;         /* `current` is what this worker was sent last: a server that has lost it may have it */
  int32_t reserved;
} tfdist_exchange;

typedef struct {
  int64_t updates;   /* that the parameters have seen */
  int64_t staleness;
  double waited_seconds;
  int32_t is_dropped, is_skipped;
  int32_t server;    /* that failed, or -1 */
  int32_t culprit;   /* the tensor whose gradient is not finite, or -1 */
  char text[976];    /* what failed, and why */
} tfdist_exchange_result;

typedef struct tfdist_client tfdist_client;
/* `sockets`: two a server, authenticated; the client owns them. `addresses`: of the servers, for messages. */
TFDIST_EXPORT tfdist_client* tfdist_client_create(int32_t rank, int32_t num_servers, const char* const* addresses,
                                                  const int32_t* sockets, double timeout_seconds);
/* Calls wait up to `seconds` for a server that is lost to be connected again. That is somebody else's task: `wake`, a
 * descriptor of a pipe, is written the server's number (a byte) when its connection breaks; not owned. TFDIST_INVALID:
 * this process has no descriptors left. */
TFDIST_EXPORT int32_t tfdist_client_recover(tfdist_client* client, double seconds, int32_t wake);
/* Whether its connection broke, and it was not connected again. */
TFDIST_EXPORT int32_t tfdist_client_is_lost(tfdist_client* client, int32_t server);
/* `sockets`: two, as at creation; `numbers`: of the `num_stores` first stores there. */
TFDIST_EXPORT void tfdist_client_reconnect(tfdist_client* client, int32_t server, const int32_t* sockets,
                                           const int32_t* numbers, int32_t num_stores);
/* What `client` pushes, `mirror` pushes too, to stores of the same numbers; closed and released by its owner. NULL: none. */
TFDIST_EXPORT void tfdist_client_set_mirror(tfdist_client* client, tfdist_client* mirror);
TFDIST_EXPORT int64_t tfdist_client_id(tfdist_client* client);
/* Retained (release it), or NULL. */
TFDIST_EXPORT tfdist_client* tfdist_client_find(int64_t id);
TFDIST_EXPORT void tfdist_client_release(tfdist_client* client);
TFDIST_EXPORT void tfdist_client_close(tfdist_client* client);
TFDIST_EXPORT int32_t tfdist_client_add_store(tfdist_client* client, const tfdist_client_store* store);
TFDIST_EXPORT void tfdist_client_begin_generation(tfdist_client* client, int32_t store, uint64_t generation, int64_t updates);
/* All of these block, at most for the time-out, and return TFDIST_OK or a tfdist_code. */
TFDIST_EXPORT int32_t tfdist_client_exchange(tfdist_client* client, int32_t store, const tfdist_exchange* call,
                                             tfdist_exchange_result* result);
/* `current`: what this worker was sent last, for a server that has lost it; or NULL. Of a transfer, if it is a reading. */
TFDIST_EXPORT int32_t tfdist_client_flush(tfdist_client* client, int32_t store, const tfdist_span* current,
                                          int32_t num_spans, tfdist_exchange_result* result);
TFDIST_EXPORT int32_t tfdist_client_transfer(tfdist_client* client, int32_t store, int32_t writes, int32_t slot,
                                             const tfdist_span* spans, const tfdist_span* current, int32_t num_spans,
                                             tfdist_exchange_result* result);
TFDIST_EXPORT int32_t tfdist_client_pull_rows(tfdist_client* client, int32_t store, int32_t tensor, const int64_t* rows,
                                              int64_t num_rows, void* target, tfdist_exchange_result* result);

#ifdef __cplusplus
}
#endif
#endif  // TFDIST_H_
