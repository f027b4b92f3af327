"""Training runs that workers execute and one process repeats as the reference.

Every case is a function without arguments that trains something under the given strategy and returns a dict of
arrays and JSON values; `run_cases` packs many of them into one spawn. Names starting with `local_` may differ
between ranks; everything else must be bit-equal.
"""

import traceback

import keras
import numpy as np
import tensorflow as tf

from tfdist.data import permutation


def data(rows=37, features=5, outputs=3, seed=0):
    """Returns inputs and targets, every row distinct."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, features))
    y = np.tanh(x @ generator.normal(size=(features, outputs))) + 0.1 * generator.normal(size=(rows, outputs))
    return x, y


def mlp(features=5, outputs=3, units=8):
    return keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(units, activation="tanh"), keras.layers.Dense(outputs)]
    )


def state(model, history=None):
    """Returns the weights before and after as far as known, and the logs."""
    result = {f"weight {i} {v.path.rsplit('/')[-1]}": v.numpy() for i, v in enumerate(model.weights)}
    if history is not None:
        result["history"] = history.history
    return result


def fit(model, optimizer, rows=37, epochs=3, batch_size=8, loss="mse", compile_arguments=None, **arguments):
    """Compiles and fits on closed-form data; returns the state of model and optimizer."""
    model.compile(optimizer, loss, metrics=["mae"], **(compile_arguments or {}))
    x, y = data(rows)
    start = [v.numpy() for v in model.weights]
    history = model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0, shuffle=False, **arguments)
    result = state(model, history)
    result.update({f"start {i}": value for i, value in enumerate(start)})
    for i, variable in enumerate(model.optimizer.variables):
        result[f"optimizer {i} {variable.path.rsplit('/')[-1]}"] = variable.numpy()
    return result


OPTIMIZERS = {
    "SGD": dict(learning_rate=0.1, momentum=0.9, nesterov=True),
    "RMSprop": {},
    "Adam": dict(amsgrad=True),
    "AdamW": {},
    "Adadelta": dict(learning_rate=1.0),
    "Adagrad": dict(learning_rate=0.1),
    "Adamax": {},
    "Adafactor": {},
    "Nadam": {},
    "Ftrl": {},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
}


def optimizer_case(name):
    def case():
        return fit(mlp(), getattr(keras.optimizers, name)(**OPTIMIZERS[name]))

    return case


CASES = {f"optimizer {name}": optimizer_case(name) for name in OPTIMIZERS if hasattr(keras.optimizers, name)}


def case(function):
    CASES[function.__name__] = function
    return function


for _argument in (
    dict(clipnorm=0.05),
    dict(clipvalue=0.01),
    dict(global_clipnorm=0.05),
    dict(weight_decay=0.01),
    dict(gradient_accumulation_steps=3),
    dict(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2),
    dict(use_ema=True, ema_momentum=0.9),
    dict(loss_scale_factor=8.0),
):
    CASES["argument " + ",".join(_argument)] = lambda argument=_argument: fit(
        mlp(), keras.optimizers.Adam(0.01, **argument)
    )


@case
def schedule():
    return fit(mlp(), keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))


@case
def steps_per_execution():
    return fit(mlp(), "adam", compile_arguments=dict(steps_per_execution=3))


@case
def run_eagerly():
    return fit(mlp(), "adam", compile_arguments=dict(run_eagerly=True))


@case
def uneven_last_batch_smaller_than_world():
    return fit(mlp(), "adam", rows=33, validation_data=data(17, seed=1))


@case
def single_row():
    return fit(mlp(), "adam", rows=1, batch_size=4)


@case
def uneven_first_batch():
    return fit(mlp(), "adam", rows=3, batch_size=32)


@case
def validation_split():
    return fit(mlp(), "adam", validation_split=0.3)


@case
def sample_weight():
    weights = np.linspace(0.1, 2.0, 37)
    return fit(mlp(), "adam", sample_weight=weights)


@case
def class_weight():
    model = mlp()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, y = data()
    history = model.fit(
        x, np.argmax(y, 1), class_weight={0: 0.5, 1: 2.0, 2: 1.0}, batch_size=8, epochs=3, verbose=0, shuffle=False
    )
    return state(model, history)


@case
def metrics():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(), keras.metrics.Precision()])
    x, y = data()
    target = (y[:, :1] > 0).astype("float64")
    history = model.fit(x, target, batch_size=8, epochs=3, verbose=0, shuffle=False, validation_data=(x, target))
    return {**state(model, history), "evaluate": model.evaluate(x, target, batch_size=16, verbose=0)}


@case
def steps_per_epoch():
    return fit(mlp(), "adam", epochs=4, steps_per_epoch=3)


@case
def regularization():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, kernel_regularizer="l2"),
            keras.layers.Dense(3, bias_regularizer="l1"),
        ]
    )
    return fit(model, "adam")


@case
def summed_loss():
    return fit(mlp(), "adam", rows=36, batch_size=12, loss=keras.losses.MeanSquaredError(reduction="sum"))


@case
def frozen():
    model = mlp()
    model.layers[0].trainable = False
    return fit(model, "adam")


@case
def embedding():
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(50, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse")
    x = (np.arange(37 * 4).reshape(37, 4) * 7) % 50
    history = model.fit(x, data(outputs=2)[1], batch_size=8, epochs=3, verbose=0, shuffle=False)
    return state(model, history)


@case
def many_inputs_and_outputs():
    a, b = keras.Input((5,), name="a"), keras.Input((2,), name="b")
    hidden = keras.layers.Dense(6, activation="tanh")(keras.layers.Concatenate()([a, b]))
    model = keras.Model(
        {"a": a, "b": b}, {"p": keras.layers.Dense(3, name="p")(hidden), "q": keras.layers.Dense(1, name="q")(hidden)}
    )
    model.compile(
        "adam", {"p": "mse", "q": "mae"}, loss_weights={"p": 1.0, "q": 0.5}, metrics={"p": ["mae"], "q": ["mse"]}
    )
    x, y = data()
    history = model.fit(
        {"a": x, "b": x[:, :2]}, {"p": y, "q": y[:, :1]}, batch_size=8, epochs=3, verbose=0, shuffle=False
    )
    predicted = model.predict({"a": x, "b": x[:, :2]}, batch_size=8, verbose=0)
    return {**state(model, history), "predict p": predicted["p"], "predict q": predicted["q"]}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(6, activation="tanh")
        self.out = keras.layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))


@case
def subclassed():
    model = Subclassed()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data()
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, shuffle=False)
    return {**state(model, history), "predict": model.predict(x, batch_size=7, verbose=0)}


class CustomStep(keras.Model):
    """As in Keras's guides: an own loss tracker, and further logs."""

    def __init__(self, **arguments):
        super().__init__()
        self.net = mlp()
        self.tracker = keras.metrics.Mean(name="own_loss")

    def call(self, x):
        return self.net(x)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.tracker.update_state(loss)
        return {"own_loss": self.tracker.result(), "batch_loss": loss}

    @property
    def metrics(self):
        return [self.tracker]


class FreeStep(CustomStep):
    """A loss that no code of Keras has scaled."""

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def custom_fit(model):
    model.build((None, 5))
    model.compile("adam", "mse")
    x, y = data()
    batches = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: batches.append(dict(logs)))
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, shuffle=False, callbacks=[callback])
    logs = {key: [float(batch[key]) for batch in batches] for key in batches[0]}
    return {**state(model, history), "batch logs": logs}


@case
def custom_train_step():
    return custom_fit(CustomStep())


@case
def free_train_step():
    return custom_fit(FreeStep())


@case
def function_train_step():
    class Model(CustomStep):
        train_step = tf.function(CustomStep.train_step)

    return custom_fit(Model())


def loop(scale, batch_size=8, drop_remainder=False):
    """A hand-written loop; `scale` says how the loss is divided."""
    strategy = tf.distribute.get_strategy()
    model = mlp()
    optimizer = keras.optimizers.Adam(0.01)
    mae = keras.metrics.MeanAbsoluteError()
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder)
    dataset = strategy.experimental_distribute_dataset(dataset)
    keras_loss = keras.losses.MeanSquaredError()

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            predictions = model(inputs, training=True)
            rows = tf.reduce_mean(tf.square(predictions - targets), axis=-1)
            if scale == "global":
                loss = tf.nn.compute_average_loss(rows, global_batch_size=batch_size)
            elif scale == "replicas":
                loss = tf.reduce_mean(rows) / strategy.num_replicas_in_sync
            elif scale == "keras":
                loss = keras_loss(targets, predictions)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        mae.update_state(targets, predictions)
        return loss

    @tf.function
    def in_graph(inputs, targets):
        return strategy.reduce("SUM", strategy.run(step, args=(inputs, targets)), axis=None)

    nested = tf.function(step)
    losses = []
    for epoch in range(3):
        for inputs, targets in dataset:
            if epoch == 1:
                losses.append(strategy.reduce("SUM", strategy.run(nested, args=(inputs, targets)), axis=None))
            else:
                losses.append(in_graph(inputs, targets))
    return {**state(model), "losses": [float(loss) for loss in losses], "mae": float(mae.result())}


@case
def loop_with_global_batch_size():
    return loop("global")


@case
def loop_divided_by_replicas():
    return loop("replicas", batch_size=6, drop_remainder=True)


@case
def loop_with_keras_loss():
    return loop("keras", batch_size=6, drop_remainder=True)


@case
def synchronized_batch_normalization():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, use_bias=False),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Dense(3),
        ]
    )
    return fit(model, "adam", rows=37, validation_data=data(9, seed=2))


@case
def predict_and_evaluate():
    model = mlp()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data()
    result = {"evaluate": model.evaluate(x, y, batch_size=8, verbose=0)}
    result["predict"] = model.predict(x, batch_size=9, verbose=0)
    result["predict on batch"] = model.predict_on_batch(x[:5])
    result["predict again"] = model.predict(x, batch_size=9, verbose=0)
    result["predict dataset"] = model.predict(tf.data.Dataset.from_tensor_slices(x).batch(8), verbose=0)
    result["predict one"] = model.predict(x[:1], verbose=0)
    result["call"] = model(x[:3]).numpy()
    result["test on batch"] = np.array(model.test_on_batch(x[:8], y[:8]))
    result["train on batch"] = np.array(model.train_on_batch(x[:8], y[:8]))
    return {**result, **state(model)}


@case
def datasets():
    model = mlp()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data()
    train = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(37, seed=3).batch(8)
    history = model.fit(train, epochs=3, verbose=0, validation_data=train.take(2))
    again = model.fit(train.repeat(), epochs=2, steps_per_epoch=3, verbose=0)
    return {**state(model, history), "again": again.history}


@case
def generators():
    def batches():
        x, y = data()
        for start in range(0, 37, 8):
            yield x[start : start + 8], y[start : start + 8]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return list(batches())[i]

    model = mlp()
    model.compile("adam", "mse")
    history = model.fit(batches(), epochs=1, verbose=0)
    more = model.fit(Batches(), epochs=2, verbose=0, shuffle=False)
    return {**state(model, history), "more": more.history}


def own_dataset(policy):
    """Every worker's own data, of unequal length; the reference has all of it."""
    strategy = tf.distribute.get_strategy()
    rank, world_size = getattr(strategy, "rank", 0), getattr(strategy, "world_size", 1)
    x, y = data(24)
    rows = (
        slice(None) if world_size == 1 else (slice(0, 16) if rank == 0 else slice(16, 24) if rank == 1 else slice(0, 0))
    )
    if policy == "function":
        dataset = strategy.distribute_datasets_from_function(
            lambda _: tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(8 // world_size)
        )
    else:
        dataset = tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(8)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.with_options(options)
    return dataset


@case
def local_uneven_shards():
    """Every row is seen once an epoch: at learning rate 0 the logs are those of one process."""
    result = {}
    for policy in ("off", "function"):
        model = mlp()
        model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
        dataset = own_dataset(policy)
        history = model.fit(dataset, epochs=2, verbose=0)
        result.update({f"{policy} history": history.history})
        result[f"{policy} evaluate"] = model.evaluate(own_dataset(policy), verbose=0)
    return result


@case
def gan():
    generator, critic = mlp(2, 5), mlp(5, 1)
    g_optimizer, d_optimizer = keras.optimizers.Adam(0.01), keras.optimizers.RMSprop(0.01)

    class Gan(keras.Model):
        def call(self, noise):
            return critic(generator(noise))

        def train_step(self, batch):
            noise, real = batch
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(critic(real)) - tf.reduce_mean(critic(generator(noise)))
            d_optimizer.apply(tape.gradient(loss, critic.trainable_variables), critic.trainable_variables)
            with tf.GradientTape() as tape:
                g_loss = tf.reduce_mean(critic(generator(noise)))
            g_optimizer.apply(tape.gradient(g_loss, generator.trainable_variables), generator.trainable_variables)
            return {"d": loss, "g": g_loss}

    model = Gan()
    model.compile()
    x, _ = data()
    history = model.fit(x[:, :2], x, batch_size=8, epochs=3, verbose=0, shuffle=False)
    return {**state(generator, history), **{f"critic {k}": v for k, v in state(critic).items()}}


@case
def evaluate_in_a_callback():
    x, y = data()
    seen = []

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([float(value) for value in self.model.evaluate(x, y, batch_size=7, verbose=0)])

        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                seen.append([float(self.model.predict(x[:3], verbose=0).sum())])

    return {**fit(mlp(), "adam", callbacks=[Evaluate()]), "seen": seen}


def normalized(units=8):
    """A model with state of every kind that replicas make equal, and a layer that shares its statistics."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Dense(3),
        ]
    )


@case
def equal_shares():
    return fit(normalized(), keras.optimizers.SGD(0.1), rows=36, batch_size=24, validation_data=data(30, seed=1))


@case
def equal_shares_of_a_dataset():
    x, y = data(36)
    model = normalized()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(12, drop_remainder=True)
    history = model.fit(dataset, epochs=3, verbose=0, validation_data=dataset)
    return {**state(model, history), "evaluate": model.evaluate(dataset, verbose=0)}


@case
def equal_shares_run_eagerly():
    return fit(mlp(), "adam", rows=24, batch_size=12, compile_arguments=dict(run_eagerly=True))


@case
def equal_shares_in_a_nested_function():
    """A function that a step calls is traced once and then runs on data of other shares too."""
    model = Nested(mlp())
    x, y = data(31)
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    history = [model.fit(x[:n], y[:n], batch_size=12, shuffle=False, verbose=0).history for n in (24, 31, 24)]
    return {**state(model), "history": history}


class Nested(keras.Model):
    """Trains in a `tf.function` of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def train_step(self, batch):
        return self.nested_step(batch)

    @tf.function(
        reduce_retracing=True,
        input_signature=[(tf.TensorSpec([None, 5], tf.float64), tf.TensorSpec([None, 3], tf.float64))],
    )
    def nested_step(self, batch):
        return super().train_step(batch)


@case
def unequal_train_on_batch_beside_fit():
    """That fit's data hold equally many rows says nothing about those of train_on_batch."""
    strategy = tf.distribute.get_strategy()
    x, y = data(24)
    results = []

    class Beside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            start, stop = permutation.share(7, strategy.rank, strategy.world_size)
            self.model.reset_metrics()
            results.append(np.array(self.model.train_on_batch(x[start:stop], y[start:stop])))

    return {**fit(mlp(), "adam", rows=24, batch_size=12, callbacks=[Beside()]), "logs": np.array(results)}


@case
def learning_callbacks():
    return fit(
        mlp(),
        keras.optimizers.SGD(2.0),
        epochs=8,
        validation_data=data(11, seed=4),
        callbacks=[
            keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=1),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=4, restore_best_weights=True),
        ],
    )


@case
def multiplicative_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return fit(mlp(), "sgd", rows=32)
    finally:
        keras.config.set_dtype_policy("float64")


def run_cases(names):
    """Runs the named cases under the ring; returns their results with the case's name before each key."""
    import tfdist

    results = {}
    for name in names:
        begin()
        with tfdist.RingAllReduceStrategy().scope():
            result = outcome(CASES[name])
        results.update({f"{name}: {key}": value for key, value in result.items()})
    return results


def begin():
    """Puts Keras into the state in which every case starts."""
    keras.utils.clear_session()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(7)


def outcome(function, *arguments):
    """Returns the function's results, or under "error" the end of its traceback."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": "".join(traceback.format_exception(error))[-3000:]}
