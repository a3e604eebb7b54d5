//! Objectives that are others in disguise (the identities their papers and ours derive).

use super::*;
use crate::likelihood::Trajectory;

/// Mean over dimensions of each sample.
fn means(values: &[f64]) -> Vec<f64> {
    values.chunks(DIMS).map(|row| row.iter().sum::<f64>() / DIMS as f64).collect()
}

/// Gradients agree when taken at the same point.
fn same(a: &[f64], b: &[f64]) {
    let off = relative(a, b);
    assert!(off < 1e-6, "off by {off}: {a:?} {b:?}");
}

/// r‖e + bδ‖² + (1 − r)‖e − bδ‖² = ‖e‖² + 2b(2r − 1) e·δ + b²‖δ‖²: a policy gradient with a frozen residual, and a proximal term.
#[test]
fn nft_is_a_linear_term_and_a_proximal_one() {
    let (mix, scale) = (0.3, 5.0);
    let probabilities = [0.9, 0.1, 0.5, 0.0, 1.0, 0.3];
    let objective = Nft { mix, scale };
    let (_, got) = evaluate(Some(BEHAVIOR), &|e| losses(&objective, probabilities, e));
    let (_, expected) = evaluate(Some(BEHAVIOR), &|e| {
        let residual = to_f64(e.velocity(Weights::Behavior)) - to_f64(e.target().expect("an ELBO"));
        let delta = to_f64(e.velocity(Weights::Current)) - to_f64(e.velocity(Weights::Behavior));
        let linear = gaussian::mean(residual * delta.clone()) * (per_sample(probabilities) * 2.0 - 1.0) * (2.0 * mix);
        (linear + gaussian::mean(delta.square()) * (mix * mix)) * (scale / mix)
    });
    same(&got, &expected);
}

/// −(A + λ) L = −A L + λ (−L).
#[test]
fn dipods_term_is_a_shift_of_advantages() {
    let (_, got) = evaluate(Some(BEHAVIOR), &|e| {
        let term = Tightness { weight: 0.4 }.value(e).expect("on");
        losses(EPG[1].get(), ADVANTAGES, e) + term * 0.4
    });
    same(&got, &evaluate(Some(BEHAVIOR), &|e| losses(EPG[1].get(), ADVANTAGES.map(|a| a + 0.4), e)).1);
    let off = evaluate(Some(BEHAVIOR), &|e| {
        assert!(Tightness::default().value(e).is_none(), "off by default");
        log_prob(e)
    });
    assert_eq!(off.0.len(), B);
}

/// Its loss is that of undivided ELBOs: with scores divided by the guidance scale it is the same number.
#[test]
fn nft_is_not_divided_by_the_guidance_scale() {
    let probabilities = [0.9, 0.1, 0.5, 0.0, 1.0, 0.3];
    for weighting in [Weighting::Adaptive, Weighting::Simple, Weighting::T] {
        let at = |guidance: f64| {
            let batch = Batch { guidance, ..batch(4) };
            let elbo = Elbo { weighting, timesteps: Timesteps::One, ..Elbo::default() };
            let query = elbo.queries(&batch, &batch).next().expect("one time");
            let [current, behavior] =
                [0.3, -0.2].map(|v| Table(Tensor::<2>::full([B, DIMS], v, &Device::flex().autodiff())));
            let fields = Fields {
                behavior: Some(&behavior),
                lagged: None,
                reference: &Never,
                guided_reference: None,
                teachers: &[],
            };
            let e = Evaluation::new(&query, &current, &fields);
            (numbers(losses(&Nft::default(), probabilities, &e)), numbers(log_prob(&e)))
        };
        let ((plain, score), (guided, divided)) = (at(1.0), at(4.5));
        for i in 0..B {
            assert!((plain[i] / guided[i] - 1.0).abs() < 1e-12, "{weighting:?}: {} {}", plain[i], guided[i]);
        }
        assert_eq!(score == divided, weighting == Weighting::T, "{weighting:?}: scores are divided");
    }
}

/// On policy its gradient is EPG's with A = M(2r − 1), whatever b.
#[test]
fn nft_on_policy_is_the_policy_gradient() {
    let probabilities = [0.9, 0.1, 0.4, 0.0, 1.0, 0.3];
    let signed = probabilities.map(|r| 5.0 * (2.0 * r - 1.0));
    let (_, expected) = evaluate(None, &|e| losses(EPG[1].get(), signed, e));
    for mix in [1.0, 0.1] {
        let objective = Nft { mix, scale: 5.0 };
        let (_, got) = evaluate(None, &|e| losses(&objective, probabilities, e));
        same(&got, &expected);
    }
}

/// ‖v − v_ref − cA(u − v_b)‖² with a frozen residual: −2cA times the linear part of L, plus Girsanov's divergence with weight 1.
#[test]
fn ram_is_a_policy_gradient_and_girsanovs_divergence() {
    let girsanov = Kl { weight: 1.0, ..Kl::default() };
    for (residual, behavior) in [(Residual::Behavior, None), (Residual::Current, Some(BEHAVIOR))] {
        let objective = Ram { multiplier: 0.4, residual };
        let (_, got) = evaluate(behavior, &|e| losses(&objective, ADVANTAGES, e));
        let (_, expected) = evaluate(behavior, &|e| {
            losses(EPG[1].get(), ADVANTAGES.map(|a| 0.4 * a), e) + girsanov.value(e).expect("on")
        });
        same(&got, &expected);
    }
}

/// With the residual, the reference and no anchor it is RAM, draw by draw.
#[test]
fn guided_by_the_residual_is_ram() {
    let guided = Guided { target: Target::Residual, origin: Origin::Reference, step: 0.4, anchor: 0.0 };
    let ram = Ram { multiplier: 0.4, residual: Residual::Behavior };
    for behavior in [None, Some(BEHAVIOR)] {
        let (got, slopes) = evaluate(behavior, &|e| losses(&guided, ADVANTAGES, e));
        let (expected, its_slopes) = evaluate(behavior, &|e| losses(&ram, ADVANTAGES, e));
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {expected:?}");
        same(&slopes, &its_slopes);
    }
}

/// Ψ is minus the covariance of rewards and clean samples, of root mean square 1: of the group, or of pairs; 0 where rewards agree.
#[test]
fn guided_moves_along_a_covariance() {
    let rewards = [1.0, 0.0, 0.5, 3.0, 3.0, 3.0];
    let clean: [f32; B * DIMS] = std::array::from_fn(|i| (i as f32 * 1.7).sin());
    let config = SamplerConfig { steps: 4, ..SamplerConfig::default() };
    let mut batch =
        drawn(&config, vec![Tensor::from_data(TensorData::new(clean.to_vec(), [B, DIMS]), &Device::flex())]);
    for (i, sample) in batch.samples.iter_mut().enumerate() {
        (sample.group, sample.reward) = (i / 3, Ok(rewards[i].into()));
    }
    let x = |i: usize, p: usize| f64::from(clean[i * DIMS + p]);
    let unit = |direction: [f64; DIMS]| {
        let size = (direction.iter().map(|d| d * d).sum::<f64>() / DIMS as f64).sqrt();
        direction.map(|d| if size > 0.0 { d / size } else { 0.0 })
    };
    // Over the three of the first group, whose mean reward is ½; and over its first two, where it is ½ too.
    let group = unit(std::array::from_fn(|p| -(0.5 * x(0, p) - 0.5 * x(1, p))));
    let elbo = Elbo { weighting: Weighting::Simple, timesteps: Timesteps::One, ..Elbo::default() };
    let query = elbo.queries(&batch, &batch).next().expect("one time");
    let (current, behavior) = (table(&query, &CURRENT, &Device::flex()), table(&query, &BEHAVIOR, &Device::flex()));
    let fields =
        Fields { behavior: Some(&behavior), lagged: None, reference: &Never, guided_reference: None, teachers: &[] };
    let e = Evaluation::new(&query, &current, &fields);
    let groups = Groups::new(&ADVANTAGES, &batch.samples, &batch, &Device::flex());
    let [v, v_b] = [&current, &behavior].map(|t| t.0.clone().into_data().iter::<f64>().collect::<Vec<_>>());
    for target in [Target::Covariance, Target::Pair] {
        let got: Vec<f64> =
            Guided { target, step: 0.3, ..Guided::default() }.loss(&e, &groups).into_data().iter::<f64>().collect();
        for i in 0..B {
            // The third of a group has no partner.
            let moved = i < 2 || (i == 2 && target == Target::Covariance);
            let direction = if moved { group } else { [0.0; DIMS] };
            let off = (0..DIMS).map(|p| (v[i * DIMS + p] - v_b[i * DIMS + p] - 0.3 * direction[p]).powi(2));
            let expected = off.sum::<f64>() / DIMS as f64;
            assert!((got[i] - expected).abs() < 1e-6 * (1.0 + expected), "{target:?}, {i}: {} {expected}", got[i]);
        }
    }
}

/// −(A − sg(d)) L has the gradient of −A L + ½ d², d = L − L_b: a policy gradient, and a proximal term that to second order is the
/// divergence to the behavior policy.
#[test]
fn pepg_is_a_policy_gradient_and_half_the_squared_log_ratio() {
    let (_, got) = evaluate(Some(BEHAVIOR), &|e| losses(PEPG[1].get(), ADVANTAGES, e));
    let (_, expected) =
        evaluate(Some(BEHAVIOR), &|e| losses(EPG[1].get(), ADVANTAGES, e) + e.log_ratio().square() * 0.5);
    same(&got, &expected);
    // With the ratio in front, the term is weighted by it too.
    let (_, got) = evaluate(Some(BEHAVIOR), &|e| losses(PEPG[0].get(), ADVANTAGES, e));
    let (_, expected) = evaluate(Some(BEHAVIOR), &|e| {
        let rho = e.ratio().detach();
        losses(EPG[0].get(), ADVANTAGES, e) + rho * e.log_ratio().square() * 0.5
    });
    same(&got, &expected);
}

/// A ‖e + δ‖² = A (‖e‖² + 2 e·δ + ‖δ‖²): what a policy gradient of an ELBO minimizes bends down without bound where A < 0.
#[test]
fn the_policy_gradient_of_an_elbo_is_a_linear_term_and_an_unbounded_one() {
    let (_, got) = evaluate(Some(BEHAVIOR), &|e| losses(EPG[1].get(), ADVANTAGES, e));
    let (_, expected) = evaluate(Some(BEHAVIOR), &|e| {
        let residual = to_f64(e.velocity(Weights::Behavior)) - to_f64(e.target().expect("an ELBO"));
        let delta = to_f64(e.velocity(Weights::Current)) - to_f64(e.velocity(Weights::Behavior));
        (gaussian::mean(residual * delta.clone()) * 2.0 + gaussian::mean(delta.square())) * per_sample(ADVANTAGES)
    });
    same(&got, &expected);
}

/// AWM: a clip so wide that it never binds, on the policy that drew, for any weighting.
#[test]
fn awm_on_policy_is_the_policy_gradient_without_a_ratio() {
    let clip = ObjectiveKind::Grpo(Grpo { clip: 1.0, clip_high: None, max_advantage: f64::INFINITY });
    same(&gradient(&clip, None), &gradient(&EPG[1], None));
    let mut ghuber = Vec::new();
    for objective in [clip.get(), EPG[1].get()] {
        let elbo = Elbo { weighting: Weighting::Ghuber, timesteps: Timesteps::One, ..Elbo::default() };
        let batch = batch(4);
        let query = elbo.queries(&batch, &batch).next().expect("one time");
        let current = table(&query, &CURRENT, &Device::flex().autodiff());
        let fields = Fields { behavior: None, lagged: None, reference: &Never, guided_reference: None, teachers: &[] };
        let loss = losses(objective, ADVANTAGES, &Evaluation::new(&query, &current, &fields));
        ghuber.push(numbers(current.0.grad(&loss.sum().backward()).expect("depends on the weights")));
    }
    same(&ghuber[0], &ghuber[1]);
}

#[test]
fn rpg_with_beta_1_is_pepg_and_with_beta_0_epg() {
    let rpg = |divergence, beta| ObjectiveKind::Rpg(Rpg { divergence, beta });
    for behavior in [None, Some(BEHAVIOR)] {
        same(&gradient(&rpg(Divergence::Reverse, 1.0), behavior), &gradient(&PEPG[0], behavior));
        for divergence in [Divergence::Reverse, Divergence::Forward] {
            same(&gradient(&rpg(divergence, 0.0), behavior), &gradient(&EPG[0], behavior));
        }
    }
    // Forward: weight ρ A + β.
    let shifted = Rpg { divergence: Divergence::Forward, beta: 0.25 };
    let (_, got) = evaluate(Some(BEHAVIOR), &|e| losses(&shifted, ADVANTAGES, e));
    let (_, plain) = evaluate(Some(BEHAVIOR), &|e| losses(EPG[0].get(), ADVANTAGES, e) - log_prob(e) * 0.25);
    same(&got, &plain);
}

#[test]
fn gmpo_of_one_draw_is_grpo_in_logarithms() {
    let objective = Gmpo { log_clip: 0.05 };
    let (values, slopes) = evaluate(Some(BEHAVIOR), &|e| losses(&objective, ADVANTAGES, e));
    let (_, dl) = evaluate(Some(BEHAVIOR), &log_prob);
    let (ratios, _) = evaluate(Some(BEHAVIOR), &|e| e.log_ratio());
    for i in 0..B {
        let (a, l) = (ADVANTAGES[i], ratios[i]);
        let stopped = a.signum() * l > 0.05;
        let rho = if stopped { (0.05 * a.signum()).exp() } else { l.exp() };
        assert!((values[i] + a * rho).abs() < 1e-12, "{i}: {} {}", values[i], -a * rho);
        for p in i * DIMS..(i + 1) * DIMS {
            let expected = if stopped { 0.0 } else { -a * rho * dl[p] };
            assert!((slopes[p] - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{i}: {} {expected}", slopes[p]);
        }
    }
    let share =
        evaluate(Some(BEHAVIOR), &|e| clipped(&objective, ADVANTAGES, e).cast(log_prob(e).dtype()) + log_prob(e) * 0.0);
    assert!(share.0.contains(&1.0) && share.0.contains(&0.0), "{:?}", share.0);
}

/// At d = A + mean d the loss is 0, and its gradient is PAR's toward the reference with the group's mean taken off: prompts have
/// each their own level.
#[test]
fn trajectory_balance_in_closed_form() {
    let (got, slopes) = evaluate(None, &|e| losses(&TrajectoryBalance {}, ADVANTAGES, e));
    let (d, dl) = evaluate(None, &|e| log_prob(e) - e.log_prob(Weights::Reference));
    for i in 0..B {
        let members: Vec<f64> = (0..B).filter(|&j| GROUPS[j] == GROUPS[i]).map(|j| d[j]).collect();
        let residual = ADVANTAGES[i] - d[i] + members.iter().sum::<f64>() / members.len() as f64;
        assert!((got[i] - 0.5 * residual * residual).abs() < 1e-12);
        for p in i * DIMS..(i + 1) * DIMS {
            assert!((slopes[p] + residual * dl[p]).abs() < 1e-6 * (1.0 + dl[p].abs()), "{i}");
        }
    }
}

/// Pairs are those of a group, wherever its samples are.
#[test]
fn dpo_in_closed_form() {
    let pairs = [1.0, -1.0, -1.0, 1.0, 1.0, -1.0];
    let objective = Dpo { beta: 3.0 };
    let (d, dl) = evaluate(None, &|e| log_prob(e) - e.log_prob(Weights::Reference));
    for (numbers, partners) in [(GROUPS, [1, 0, 3, 2, 5, 4]), ([0, 1, 2, 1, 2, 0], [5, 3, 4, 1, 2, 0])] {
        let (got, slopes) = evaluate(None, &|e| in_groups(numbers, pairs, |groups| objective.loss(e, groups)));
        for i in 0..B {
            let margin = 1.5 * (pairs[i] * d[i] + pairs[partners[i]] * d[partners[i]]);
            assert!((got[i] - 0.5 * (-margin).exp().ln_1p()).abs() < 1e-12, "{i}");
            let slope = -1.5 * pairs[i] / (1.0 + margin.exp());
            for p in i * DIMS..(i + 1) * DIMS {
                let expected = slope * dl[p];
                assert!((slopes[p] - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{i}: {} {expected}", slopes[p]);
            }
        }
    }
}

/// Of the best and the worst of a group alone it is DPO, of twice the β.
#[test]
fn dgpo_of_pairs_is_dpo() {
    let pairs = [1.0, -1.0, -1.0, 1.0, 1.0, -1.0];
    let (dgpo, dpo) = (Dgpo { beta: 1.5, other: Other::Reference }, Dpo { beta: 3.0 });
    let (got, slopes) = evaluate(None, &|e| losses(&dgpo, pairs, e));
    let (expected, dpo_slopes) = evaluate(None, &|e| losses(&dpo, pairs, e));
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {expected:?}");
    same(&slopes, &dpo_slopes);
}

/// Of the reference, the mean and β = 1 it is trajectory balance.
#[test]
fn crd_can_be_trajectory_balance() {
    let crd = Crd { other: Other::Reference, ..Crd::default() };
    let (got, slopes) = evaluate(Some(BEHAVIOR), &|e| losses(&crd, ADVANTAGES, e));
    let (expected, its_slopes) = evaluate(Some(BEHAVIOR), &|e| losses(&TrajectoryBalance {}, ADVANTAGES, e));
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {expected:?}");
    same(&slopes, &its_slopes);
}

/// c(d) by hand, in one group.
#[test]
fn crd_centers_in_three_ways() {
    let advantages = [2.0, 1.0, -0.5, -1.0, 0.0, -1.5];
    let (d, _) = evaluate(Some(BEHAVIOR), &|e| e.log_ratio());
    let weighted = |weight: &dyn Fn(f64) -> f64| {
        let sum: f64 = advantages.iter().zip(&d).map(|(&a, d)| weight(a) * d).sum();
        sum / advantages.iter().map(|&a| weight(a)).sum::<f64>()
    };
    let halves = f64::midpoint(f64::midpoint(d[0], d[1]), (d[2] + d[3] + d[5]) / 3.0);
    for (centring, center) in [
        (Centring::Mean, weighted(&|_| 1.0)),
        (Centring::Halves, halves),
        (Centring::Softmax, weighted(&|a| (a / 0.6).exp())),
    ] {
        let crd = Crd { beta: 3.0, centring, temperature: 0.6, other: Other::Lagged };
        let (got, _) = evaluate(Some(BEHAVIOR), &|e| in_groups([0; B], advantages, |groups| crd.loss(e, groups)));
        for i in 0..B {
            let expected = 0.5 * (3.0 * (d[i] - center) - advantages[i]).powi(2);
            assert!((got[i] - expected).abs() < 1e-12, "{centring:?}, {i}: {} {expected}", got[i]);
        }
    }
}

/// −ln σ(β (Σ w d of the better − Σ w d of the worse)), a third of it for each of three; a group without difference has no gradient.
#[test]
fn dgpo_in_closed_form() {
    let advantages = [2.0, 1.0, -0.5, 0.0, 0.0, 0.0];
    let objective = Dgpo { beta: 0.7, other: Other::Reference };
    let (got, slopes) =
        evaluate(None, &|e| in_groups([0, 0, 0, 1, 1, 1], advantages, |groups| objective.loss(e, groups)));
    let (d, dl) = evaluate(None, &|e| log_prob(e) - e.log_prob(Weights::Reference));
    let margin = 0.7 * (d[0] * 2.0 / 3.0 + d[1] / 3.0 - d[2]);
    for (i, weight) in [2.0 / 3.0, 1.0 / 3.0, -1.0, 0.0, 0.0, 0.0].into_iter().enumerate() {
        let expected = if i < 3 { (-margin).exp().ln_1p() / 3.0 } else { 2f64.ln() / 3.0 };
        assert!((got[i] - expected).abs() < 1e-12, "{i}: {} {expected}", got[i]);
        for p in i * DIMS..(i + 1) * DIMS {
            let slope = -0.7 * weight / (1.0 + margin.exp()) * dl[p];
            assert!((slopes[p] - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{i}: {} {slope}", slopes[p]);
        }
    }
}

/// The value of each sample and its slope with respect to v, at one step of the SDE that was drawn under the behavior policy with the
/// given noise.
fn at_a_step(noise: &[f32], value: &dyn Fn(&Evaluation<'_>) -> Tensor<1>) -> (Vec<f64>, Vec<f64>) {
    let device = Device::flex();
    let latent = |values: Vec<f32>| Tensor::<2>::from_data(TensorData::new(values, [B, DIMS]), &device);
    let config = SamplerConfig { rule: FlowSde::default().into(), steps: 4, ..SamplerConfig::default() };
    let x = latent((0..B * DIMS).map(|i| (i as f32 * 0.7).sin()).collect());
    let behavior = latent((0..B * DIMS).map(|i| (i as f32 * 1.3).cos()).collect());
    let moved = latent((0..B * DIMS).map(|i| (i as f32 * 1.3).cos() + 0.05 * (i as f32).sin()).collect());
    let sampling = config.build();
    let step = sampling.rule.step(&sampling.grid(Schedule::RectifiedFlow), 0);
    let mean = sampler::mean(&[step], &[Visit { x: x.clone(), velocity: behavior.clone() }]);
    let batch = drawn(&config, vec![x, mean + latent(noise.to_vec()) * step.std]);
    let trajectory = Trajectory { fraction: 0.25, ratio: Ratio::PerDraw, ..Trajectory::default() };
    let query = trajectory.queries(&batch, &batch).next().expect("a step");
    let current = Table(Tensor::from_data(moved.into_data(), &device.clone().autodiff()).require_grad());
    let behavior = Table(behavior);
    let fields =
        Fields { behavior: Some(&behavior), lagged: None, reference: &behavior, guided_reference: None, teachers: &[] };
    let values = value(&Evaluation::new(&query, &current, &fields));
    let gradient = current.0.grad(&values.clone().sum().backward()).map_or_else(Vec::new, numbers);
    (numbers(values), gradient)
}

/// ln π(x′ | x) = −(slope²/2s²) mean ‖v − v*‖² + constant, v* = v_b + (s/slope) z: DDPO's and Flow-GRPO's step is denoising score matching
/// whose target is the behavior policy's own velocity with the noise of the step on it (arXiv 2509.25050).
#[test]
fn a_step_of_a_trajectory_matches_a_noisy_target() {
    let noise = some_noise();
    let (log_ratio, _) = at_a_step(&noise, &|e| e.log_ratio());
    let (scale, _) = at_a_step(&noise, &|e| {
        let steps = e.steps(Weights::Behavior).expect("steps").0;
        steps.slope.clone() / steps.std.clone() + log_prob(e) * 0.0
    });
    let shift: Vec<f64> = (0..B * DIMS).map(|i| 0.05 * (i as f64).sin()).collect();
    for i in 0..B {
        let square = |from_target: &dyn Fn(usize) -> f64| {
            (i * DIMS..(i + 1) * DIMS).map(|p| from_target(p).powi(2)).sum::<f64>() / DIMS as f64
        };
        let target = |p: usize| f64::from(noise[p]) / scale[i];
        let expected = (square(&target) - square(&|p| shift[p] - target(p))) * scale[i].powi(2) / 2.0;
        assert!((log_ratio[i] - expected).abs() < 1e-6, "{i}: {} {expected}", log_ratio[i]);
    }
}

/// Over x′ ~ q(x′ | x, x₀) that target v* = (x′ − c)/slope has the mean of the clean one, u = α̇ x₀ + σ̇ ε, and, beside its covariance, κ I more:
/// the posterior's variance σ′² b²/σ², b² = σ² − (α/α′)² σ′², brought from the sample to its velocity. κ > 0 but for a step to the data.
#[test]
fn a_noisy_target_has_the_mean_of_the_clean_one_and_more_variance() {
    let (sampler, times, [clean, noise]) = (Ddim { eta: 1.0 }, [0.9, 0.6, 0.3, 0.05, 0.0], [0.7, -1.3]);
    for schedule in [Schedule::RectifiedFlow, Schedule::VariancePreserving { beta_min: 0.1, beta_max: 20.0 }] {
        for k in 0..4 {
            let (from, to) = (schedule.level(times[k]), schedule.level(times[k + 1]));
            let velocity = from.d_alpha * clean + from.d_sigma * noise;
            let x = from.alpha * clean + from.sigma * noise;
            let step = sampler.step(&Grid::new(schedule, times.to_vec()), k);
            let slope = step.mean.v[0];
            // Of N(α′x₀, σ′²) given x = (α/α′) x′ + b z.
            let along = from.alpha / to.alpha;
            let square = from.sigma.powi(2) - (along * to.sigma).powi(2);
            let posterior = (to.alpha * clean * square + along * to.sigma.powi(2) * x) / from.sigma.powi(2);
            let unbiased = (posterior - step.mean.x[0] * x) / slope;
            assert!((unbiased - velocity).abs() < 1e-5 * (1.0 + velocity.abs()), "{k}: {unbiased} {velocity}");
            // The score of x given x′ is −(x − (α/α′) x′)/b², and the velocity moves by Δσ/α of a score, Δ = α σ̇ − α̇ σ.
            let score = (along / square).powi(2) * to.sigma.powi(2) * square / from.sigma.powi(2);
            let kappa = score * (from.determinant() * from.sigma / from.alpha).powi(2);
            let got = (step.std / slope).powi(2);
            assert!((got - kappa).abs() < 1e-5 * kappa + 1e-12, "{k}: {got} {kappa}");
            assert_eq!(kappa > 1e-12, k < 3);
        }
    }
}

fn some_noise() -> Vec<f32> {
    (0..B * DIMS).map(|i| (i as f32 * 2.1).sin() * 1.4).collect()
}

/// (L − L_b + b) s = mean z · (μ_θ − μ_b), with z the noise of the step.
#[test]
fn the_guarded_ratio_is_noise_times_shift() {
    let noise = some_noise();
    let unclipped = GrpoGuard { clip: f64::INFINITY, max_advantage: f64::INFINITY };
    let (got, _) = at_a_step(&noise, &|e| losses(&unclipped, [1.0; B], e));
    let (steps, _) = at_a_step(&noise, &|e| {
        let (steps, _) = e.steps(Weights::Behavior).expect("steps");
        steps.dt.clone() + log_prob(e) * 0.0
    });
    let (slopes, _) =
        at_a_step(&noise, &|e| e.steps(Weights::Behavior).expect("steps").0.slope.clone() + log_prob(e) * 0.0);
    let shift: Vec<f64> = (0..B * DIMS).map(|i| 0.05 * (i as f64).sin() * f64::from(noise[i])).collect();
    for (i, shift) in means(&shift).into_iter().enumerate() {
        let ratio = -got[i] * steps[i];
        assert!((ratio.ln() - slopes[i] * shift).abs() < 1e-6, "{i}: {} {}", ratio.ln(), slopes[i] * shift);
    }
}

/// The divergence is that of two Gaussians, and what it stops is what leads away.
#[test]
fn flow_dppo_stops_only_what_leads_away() {
    let noise = some_noise();
    let signs = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
    let keep = [1.0, 1.0, -1.0, -1.0, 1.0, 1.0];
    let (ratios, _) = at_a_step(&noise, &|e| e.log_ratio());
    for (limit, stops) in [(1e-12, true), (1e3, false)] {
        let objective = FlowDppo { max_divergence: limit };
        let a: [f64; B] = std::array::from_fn(|i| signs[i] * keep[i]);
        let (got, gradient) = at_a_step(&noise, &|e| losses(&objective, a, e));
        for i in 0..B {
            let stopped = stops && a[i] * ratios[i] > 0.0;
            let expected = if stopped { 0.0 } else { -a[i] * ratios[i].exp() };
            assert!((got[i] - expected).abs() < 1e-9, "{i}: {} {expected}", got[i]);
            let still = gradient[i * DIMS..(i + 1) * DIMS].iter().all(|g| *g == 0.0);
            assert_eq!(still, stopped, "{i}");
        }
    }
    assert!(ratios.iter().any(|r| *r > 0.0) && ratios.iter().any(|r| *r < 0.0), "{ratios:?}");
}

/// Equal rewards make no direction, however their sum is rounded; and a centring stands for an empty half or a far group too.
#[test]
fn nothing_is_made_of_rounding_or_of_empty_halves() {
    let config = SamplerConfig { steps: 4, ..SamplerConfig::default() };
    let mut batch = drawn(&config, vec![Tensor::ones([B, DIMS], &Device::flex())]);
    for sample in &mut batch.samples {
        (sample.group, sample.reward) = (0, Ok((0.1).into()));
    }
    let query = {
        let elbo = Elbo { weighting: Weighting::Simple, timesteps: Timesteps::One, ..Elbo::default() };
        elbo.queries(&batch, &batch).next().expect("one time")
    };
    let current = table(&query, &CURRENT, &Device::flex());
    let fields = Fields { behavior: None, lagged: None, reference: &Never, guided_reference: None, teachers: &[] };
    let e = Evaluation::new(&query, &current, &fields);
    let groups = Groups::new(&[0.0; B], &batch.samples, &batch, &Device::flex());
    let losses: Vec<f64> = Guided::default().loss(&e, &groups).into_data().iter::<f64>().collect();
    assert_eq!(losses, [0.0; B], "the policy that drew stays where it is");

    // A group without a worse half is centered by its mean there, and one far below another by its own softmax.
    let advantages = [1.0, 2.0, 0.5, -3000.0, -3001.0, -3000.5];
    let (d, _) = evaluate(Some(BEHAVIOR), &|e| e.log_ratio());
    let (mean, far) = ((d[0] + d[1] + d[2]) / 3.0, [3, 4, 5]);
    let weight = |i: usize| (advantages[i] + 3000.0f64).exp();
    let soft = far.iter().map(|&i| weight(i) * d[i]).sum::<f64>() / far.iter().map(|&i| weight(i)).sum::<f64>();
    for (centring, place, center) in [(Centring::Halves, 0, mean), (Centring::Softmax, 3, soft)] {
        let crd = Crd { beta: 1.0, centring, temperature: 1.0, other: Other::Lagged };
        let groups = [0, 0, 0, 1, 1, 1];
        let (got, _) = evaluate(Some(BEHAVIOR), &|e| in_groups(groups, advantages, |groups| crd.loss(e, groups)));
        let expected = 0.5 * (d[place] - center - advantages[place]).powi(2);
        assert!((got[place] / expected - 1.0).abs() < 1e-9, "{centring:?}: {} {expected}", got[place]);
    }
}
