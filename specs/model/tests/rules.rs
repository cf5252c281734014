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

#[test]
fn with_all_rules_every_property_holds() {
    for setting in Setting::ALL {
        holds(*setting, Rules::all());
    }
}

#[test]
fn without_any_one_rule_a_property_breaks() {
    for (rule, setting, property) in COUNTEREXAMPLES {
        let timeline = setting.hunt(*rule, property);
        assert!(timeline.is_some(), "{setting:?} without {rule:?}: not found that {property:?} breaks");
    }
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
