//! With all rules every property holds; without any one of them, one does not.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use duet_model::explore::Verdict;
use duet_model::rules::{Rule, Rules};
use duet_model::settings::{COUNTEREXAMPLES, Setting, Size};

fn holds(setting: Setting, rules: Rules) {
    match setting.check(Size::Small, rules, 2) {
        Verdict::Holds { states } => println!("{setting:?}: {states} states"),
        Verdict::Broken { property, timeline } => {
            panic!("{setting:?}: {property} is broken:\n{}", timeline.join("\n"));
        }
    }
}

fn breaks(setting: Setting) {
    for (rule, _, property) in COUNTEREXAMPLES.iter().filter(|(_, of, _)| *of == setting) {
        let timeline = setting.timeline(*rule, property);
        let timeline =
            timeline.unwrap_or_else(|| panic!("{setting:?} without {rule:?}: {property:?} does not break"));
        assert!(
            include_str!("../../switch.md").contains(&timeline),
            "specs/switch.md does not tell this of {rule:?} (`cargo run -p duet-model -- timelines`):\n{timeline}"
        );
    }
}

macro_rules! settings {
    ($($name:ident: $setting:ident;)*) => {
        mod with_all_rules_every_property_holds {
            use super::*;
            $(#[test] fn $name() { holds(Setting::$setting, Rules::all()); })*
        }

        mod without_any_one_rule_a_property_breaks {
            use super::*;
            $(#[test] fn $name() { breaks(Setting::$setting); })*
        }

        #[test]
        fn every_setting_is_explored() {
            assert_eq!(Setting::ALL, [$(Setting::$setting),*]);
        }
    };
}

settings! {
    one_copy: OneCopy;
    two_copies: TwoCopies;
    three_copies: ThreeCopies;
    five_members: FiveMembers;
    to_eventual: ToEventual;
    late: Late;
    retry: Retry;
    token: Token;
}

#[test]
fn every_rule_has_its_counterexample_or_is_for_speed() {
    for rule in Rule::ALL {
        let shown = COUNTEREXAMPLES.iter().any(|(other, ..)| other == rule);
        assert_ne!(shown, Rule::FOR_SPEED.contains(rule), "{rule:?}");
    }
    for number in 0..=11 {
        assert!(COUNTEREXAMPLES.iter().any(|(rule, ..)| rule.number() == number), "rule {number}");
    }
}

#[test]
fn rules_for_speed_are_not_needed_for_more() {
    for rule in Rule::FOR_SPEED {
        holds(Setting::OneCopy, Rules::without(*rule));
        holds(Setting::ThreeCopies, Rules::without(*rule));
    }
}
