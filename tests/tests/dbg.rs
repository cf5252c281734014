use duet_tests::sim::{Plan, run};
#[test]
fn dbg() {
    for seed in [0,1,2,3,4,5,6,7,8,9,56] { let p = Plan::draw(seed); println!("{seed}: nodes {} loss {} dup {} reorder {} delay {:?} sync {:?} first {:?}", p.nodes, p.loss_permille, p.duplicate_permille, p.reorder_permille, p.delay, p.sync, p.faults.first());
      println!("   -> {:?}", run(&p, None).map(|r| r.operations).map_err(|f| f.what.chars().take(90).collect::<String>()));
    }
}
