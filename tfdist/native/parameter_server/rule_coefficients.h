// The constants of one update, in the element type, rounded where Keras rounds them.
#ifndef TFDIST_PARAMETER_SERVER_RULE_COEFFICIENTS_H_
#define TFDIST_PARAMETER_SERVER_RULE_COEFFICIENTS_H_

#include <cstdint>

#include "parameter_server/rule_kernels.h"
#include "tfdist.h"

namespace tfdist {

// Where a rule's hyperparameters stand among tfdist_rule::parameters; tfdist.h lists them.
enum SgdParameter { kSgdMomentumAt };
enum AdamParameter { kAdamBeta1, kAdamBeta2, kAdamEpsilon };  // of Adamax and Nadam too
enum AdagradParameter { kAdagradInitial, kAdagradEpsilon };
enum RmspropParameter { kRmspropRho, kRmspropMomentumAt, kRmspropEpsilon };
enum AdadeltaParameter { kAdadeltaRho, kAdadeltaEpsilon };
enum FtrlParameter { kFtrlPowerAt, kFtrlInitial, kFtrlL1, kFtrlL2, kFtrlShrinkage, kFtrlBeta };
enum LionParameter { kLionBeta1, kLionBeta2 };

// Nadam's product of u(1) ... u(t), kept for either element type, and the t it stands at: tfdist_rule's `scalars`.
enum NadamScalar { kProductInDouble, kProductInFloat, kProductStep };

// Multiplies Nadam's products on to step `t`; the other rules have no scalars.
void advance_scalars(const tfdist_rule& rule, int64_t t, double* scalars);

// `u_product`: Nadam's, at `t`.
template <typename T>
Coefficients<T> make_coefficients(const tfdist_rule& rule, double learning_rate, double weight_decay, int64_t t,
                                  double u_product);

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_RULE_COEFFICIENTS_H_
