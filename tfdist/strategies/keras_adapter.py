"""The one place where tfdist reaches into Keras: a closed list of methods and functions that are wrapped.

Clipping runs before `tf.distribute`'s reduction, the saving callbacks know no chief, the order of array data is drawn
before a strategy sees it: what hooks of `tf.distribute` cannot reach is wrapped here. Every wrapper calls the original
at once unless a strategy of ours with several workers is at work. `remove()` takes all of them off again.
"""

import functools

import keras
import tensorflow as tf
from keras.src.trainers import epoch_iterator  # not public: it alone knows that data have ended
from keras.src.trainers.data_adapters import array_data_adapter  # not public: the order of array data is drawn there

from tfdist.strategies import (
    keras_arrays,
    keras_dealing,
    keras_functions,
    keras_gradients,
    keras_position,
    keras_saving,
    keras_servers,
    keras_steps,
    keras_trainer,
)

# (object, attribute, stand-in called as stand_in(original, *args, **kwargs))
WRAPPED = (
    (keras.optimizers.Optimizer, "apply", keras_gradients.apply),
    (keras.optimizers.LossScaleOptimizer, "apply", keras_gradients.apply),
    (keras.random.SeedGenerator, "next", keras_gradients.next_seed),
    (keras.metrics.Mean, "update_state", keras_steps.update_mean),
    (keras_steps.TRAINER, "fit", keras_trainer.fit),
    (keras_steps.TRAINER, "evaluate", keras_trainer.evaluate),
    (keras_steps.TRAINER, "predict", keras_trainer.predict),
    (keras_steps.TRAINER, "get_metrics_result", keras_servers.get_metrics_result),
    (keras.layers.Embedding, "call", keras_servers.embedding),
    (keras_steps.TRAINER, "make_train_function", keras_functions.make_train_function),
    (keras_steps.TRAINER, "make_test_function", keras_functions.make_test_function),
    (keras_steps.TRAINER, "make_predict_function", keras_functions.make_predict_function),
    (keras.Model, "save", keras_saving.save),
    (keras.Model, "save_weights", keras_saving.save),
    (keras.Model, "export", keras_saving.save),
    (keras.saving, "save_model", keras_saving.save),
    (keras.models, "save_model", keras_saving.save),
    (array_data_adapter.ArrayDataAdapter, "get_tf_dataset", keras_arrays.get_tf_dataset),
    (epoch_iterator.EpochIterator, "_interrupted_warning", keras_dealing.interrupted_warning),
    (epoch_iterator.EpochIterator, "_enumerate_iterator", keras_position.enumerate_iterator),
    (keras.callbacks.ProgbarLogger, "on_epoch_end", keras_dealing.on_epoch_end),
)

_originals = []
_lasting = {"strategy": None}


def install():
    """Wraps every method of `WRAPPED`; does nothing when that was done before."""
    if _originals:
        return
    for owner, name, stand_in in WRAPPED:
        _wrap(owner, name, stand_in)
    for module in (keras.utils, keras.backend):
        _wrap(module, "clear_session", _clear_session)


def remove():
    """Puts every original back."""
    while _originals:
        owner, name, own = _originals.pop()
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
    _lasting["strategy"] = None


def keep_after_clear_session(strategy):
    """Makes `strategy` survive `keras.utils.clear_session()`, which drops the default strategy silently."""
    _lasting["strategy"] = strategy


def _wrap(owner, name, stand_in):
    original = getattr(owner, name)

    @tf.autograph.experimental.do_not_convert
    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        return stand_in(original, *args, **kwargs)

    _originals.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, wrapper)


def _clear_session(original, *args, **kwargs):
    result = original(*args, **kwargs)
    if _lasting["strategy"] is not None:
        tf.distribute.experimental_set_strategy(_lasting["strategy"])
    return result
