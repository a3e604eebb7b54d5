//! Where a window is (arXiv 2507.21802), and what it does to a step.

use super::*;

const STEPS: usize = 10;

fn at(window: Window, epoch: u64) -> usize {
    window.first(STEPS, 7, epoch)
}

fn window(strategy: Strategy) -> Window {
    Window { strategy, ..Window::default() }
}

#[test]
fn it_moves_by_its_stride_and_starts_again() {
    let progressive = window(Strategy::Progressive);
    // 4 of the first 9 steps: positions 0 to 5.
    for (epoch, first) in [(0, 0), (24, 0), (25, 1), (74, 2), (125, 5), (149, 5), (150, 0), (175, 1)] {
        assert_eq!(at(progressive, epoch), first, "epoch {epoch}");
    }
    let strided = Window { stride: 2, every: 1, ..progressive };
    assert_eq!((0..7).map(|e| at(strided, e)).collect::<Vec<_>>(), [0, 2, 4, 0, 2, 4, 0]);
    let whole = Window { size: 9, every: 1, ..progressive };
    assert_eq!([at(whole, 0), at(whole, 1)], [0, 0]);
}

#[test]
fn it_decays_to_fewer_epochs_at_later_positions() {
    let decay = Window { every: 10, ..window(Strategy::Decay) };
    let firsts = (0..45).map(|e| at(decay, e)).collect::<Vec<_>>();
    // 10 − 9 k/9 for k = 0 … 5.
    let stays = (0..=5).map(|k| firsts.iter().filter(|&&f| f == k).count()).collect::<Vec<_>>();
    assert_eq!(stays, [10, 9, 8, 7, 6, 5]);
    assert!(firsts.is_sorted() && at(decay, 45) == 0);
}

#[test]
fn a_random_one_is_anywhere_and_decided_by_seed_and_epoch() {
    let random = Window { every: 3, ..window(Strategy::Random) };
    let firsts = (0..600).map(|e| at(random, e)).collect::<Vec<_>>();
    assert!(firsts.chunks(3).all(|c| c[0] == c[1] && c[1] == c[2]), "one position for three epochs");
    let counts = (0..=5).map(|k| firsts.iter().filter(|&&f| f == k).count() / 3).collect::<Vec<_>>();
    // Binomial(200, 1/6) has deviation 5.3.
    assert!(counts.iter().sum::<usize>() == 200 && counts.iter().all(|c| (12..=55).contains(c)), "{counts:?}");
    assert_eq!(firsts, (0..600).map(|e| at(random, e)).collect::<Vec<_>>());
    assert_ne!(firsts, (0..600).map(|e| random.first(STEPS, 8, e)).collect::<Vec<_>>(), "another seed");
}

#[test]
fn steps_inside_are_the_sdes_and_steps_outside_eulers() {
    let times = grid(STEPS, 3.0);
    for (sde, inside) in [
        (Sde::FlowSde(FlowSde::default()), flow_sde(0.7)),
        (Sde::Dance(Dance::default()), dance(0.3)),
        (Sde::Cps(Cps::default()), cps(0.8)),
        (Sde::Ddim(Ddim::default()), ddim(1.0)),
    ] {
        let rule = SamplerKind::Window(Window { sde, every: 1, ..window(Strategy::Progressive) });
        let grid = Grid::new(FLOW, times.clone());
        let walk = rule.get().walk(&grid, Key::new(0, Purpose::Step, 3));
        for (k, step) in walk.into_iter().enumerate() {
            let expected = if (3..7).contains(&k) { &inside } else { &SamplerKind::Euler(Euler {}) };
            assert_eq!(step, expected.get().step(&grid, k), "{sde:?} step {k}");
            assert_eq!(step.std > 0.0, (3..7).contains(&k), "{sde:?} step {k}");
        }
    }
}

#[test]
fn one_that_does_not_fit_is_refused() {
    let refusal = |window: Window, schedule| sampling(window).validate("sampler", schedule).into_iter().next();
    let fine = Window::default();
    assert_eq!(refusal(Window { size: 9, ..fine }, FLOW), None);
    let ddim = Window { sde: Sde::Ddim(Ddim::default()), ..fine };
    assert_eq!(refusal(ddim, VP), None);
    for (window, schedule, words) in [
        (Window { size: 10, ..fine }, FLOW, ["size = 10", "10 steps"]),
        (Window { size: 0, ..fine }, FLOW, ["size = 0", "at least 1"]),
        (Window { every: 0, ..fine }, FLOW, ["every = 0", "at least 1"]),
        (Window { stride: 0, ..fine }, FLOW, ["stride = 0", "at least 1"]),
        (fine, VP, ["flow-sde", "rectified flow"]),
        (Window { sde: Sde::Ddim(Ddim { eta: 2.0 }), ..fine }, FLOW, ["eta = 2", "between 0 and 1"]),
    ] {
        let message = refusal(window, schedule).expect("does not fit");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}
