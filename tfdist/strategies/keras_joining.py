"""A worker that joins a `fit` with parameter servers: where an epoch begins, when nothing is under way.

The members, at the beginning of every epoch, take in who waits (`admit`). The joiner, at the beginning of its `fit`, has made the
model, the optimizer and the data, and sent the servers nothing: it waits until it is taken in (`join`), is given what the others
have, and begins with the epoch that they are about to begin. It traces its first step then, for which members in step with it wait.
"""

from absl import logging

from tfdist.data import dealing, py_dataset, recut
from tfdist.strategies import hosting, keras_elastic, keras_trainer


class Joining:
    """The members' part and the joiner's, of one call of `fit`.

    Args:
      strategy: an elastic strategy with servers.
      model: the Keras model, its optimizer built.
    """

    def __init__(self, strategy, model):
        self._strategy, self._model = strategy, model
        self._fit, self._call = keras_elastic.current_fit(), keras_trainer.current_call()
        self._told = None  # what a joiner was given, until its first epoch begins

    def join(self):
        """Waits to be taken in, and takes over what the others have.

        Raises:
          FitIsOver: the others are past this `fit`.
        """
        self._fit.ask_to_join()
        self._told = self._fit.handover.take()
        self._model._initial_epoch = self._told["epoch"]
        self._catch_up(self._told["data"])
        self._call.is_late = self._fit.is_to_trace_late = self._told["is_late"]
        with self._strategy.elastic.passing():  # the others have declared it long ago
            self._strategy.join_optimizers(hosting.parts_of(self._model.optimizer), **self._told["optimizers"],
                                           statistics=[v.value for v in self._model.non_trainable_variables])  # fmt: skip
        self._strategy.barrier("a worker has joined")

    def begin_epoch(self):
        """Returns whether this worker has just joined, with the others at this place."""
        told, self._told = self._told, None
        if told is not None:
            self._model._initial_epoch = None  # Keras has read it
            self._fit.handover.recall(told)
        return told is not None

    def admit(self, epoch, is_late):
        """Takes in who waits; all members call it at the beginning of the same epoch, after a barrier.

        Args:
          epoch: int, Keras's.
          is_late: whether an epoch of this `fit` is over.
        """
        joined = self._strategy.elastic.membership.admit(self._strategy.num_fit_calls)
        if not joined:
            return
        logging.info("tfdist: rank %s joins in epoch %d", ", ".join(map(str, joined)), epoch + 1)
        optimizers = self._strategy.declared_optimizers(hosting.parts_of(self._model.optimizer))
        place = {"epoch": epoch, "data": self._place(), "is_late": is_late, "optimizers": optimizers}
        self._fit.handover.give(place)
        self._strategy.barrier("a worker has joined")

    def _place(self):
        """Returns where the data to train on stand, for JSON."""
        data = self._call.training_data
        place = {"orders": [order.num_epochs for order in self._shared_orders()]}
        if isinstance(data, recut.Recutting):
            place["parts"] = data.place()
        elif dealing.is_dealt(data):
            place["dealt"] = self._strategy.dealer().place()
        return place

    def _catch_up(self, place):
        data = self._call.training_data
        for order, num_epochs in zip(self._shared_orders(), place["orders"]):
            order.pass_epochs(num_epochs - order.num_epochs)
        if "parts" in place:
            data.catch_up(place["parts"])
        elif "dealt" in place:
            for _ in range(self._strategy.dealer().catch_up(*place["dealt"])):
                iter(data)  # a dataset may be in another order in each

    def _shared_orders(self):
        return [order for order in self._call.orders if isinstance(order, py_dataset.SharedOrder)]
