"""Models of every form, with train steps of their own."""

import keras
import numpy as np
import tensorflow as tf

from tests.strategies.case_tools import case, data, fit, mlp, state


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
