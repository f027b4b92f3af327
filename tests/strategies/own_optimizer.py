"""An optimizer that a user might have written; a server imports it from here."""

import keras


class Halving(keras.optimizers.Optimizer):
    """SGD whose steps are halved, with a count of its own."""

    def build(self, variables):
        super().build(variables)
        self.steps = self.add_variable((), name="steps")

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, 0.5 * keras.ops.cast(learning_rate, variable.dtype) * gradient)
        self.assign_add(self.steps, 1.0)
