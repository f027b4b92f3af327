"""One worker's weights for all."""

import keras

from tfdist.errors import ConfigurationError


class BroadcastInitialState(keras.callbacks.Callback):
    """Gives every worker rank `root`'s weights and optimizer state when training begins.

    Variables made under a strategy of tfdist start equal already. Use this where only one worker has loaded a
    checkpoint, or where weights were assigned by hand. It costs one broadcast of S bytes, S the size of the state.

    Args:
      root: int, the rank whose state is kept.

    Raises:
      ConfigurationError: when training begins, if `root` is not a rank.
    """

    def __init__(self, root=0):
        super().__init__()
        self.root = root

    def on_train_begin(self, logs=None):
        strategy = self.model.distribute_strategy
        world_size = getattr(strategy, "world_size", 1)
        if not 0 <= self.root < world_size:
            raise ConfigurationError(
                f"root must be a rank, 0 to {world_size - 1}. Received: root={self.root}. Name an existing worker."
            )
        if world_size == 1:
            return
        optimizer = self.model.optimizer
        variables = [*self.model.variables, *(optimizer.variables if optimizer is not None else ())]
        for variable in variables:
            variable.assign(strategy.broadcast(variable.value, root=self.root, name=variable.path))
