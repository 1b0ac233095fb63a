use leveret_amqp::{FieldTable, TableBuilder};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::vhost::exchange::naive::headers_match;

fn table<'v>(fields: impl IntoIterator<Item = (&'v str, Value<'v>)>) -> FieldTable {
    FieldTable::build(|t| {
        for (name, value) in fields {
            t.field(name, value);
        }
    })
}

fn text(text: &str) -> Value<'_> {
    Value::LongStr(text.as_bytes())
}

/// The targets that headers match as they are handed out, if the search stops each time after so many steps.
fn search(
    index: &HeadersIndex<u32>,
    headers: &FieldTable,
    scratch: &mut HeadersScratch,
    at_once: usize,
) -> Vec<u32> {
    let mut found = vec![];
    scratch.forget_message();
    index.begin(headers.as_table(), scratch, &mut usize::MAX.clone());
    loop {
        let mut left = at_once;
        if index.go_on(scratch, &mut left, |target| found.push(target)) {
            return found;
        }
        assert_eq!(left, 0, "it stops when it has to");
    }
}

fn sorted(mut targets: Vec<u32>) -> Vec<u32> {
    targets.sort_unstable();
    targets.dedup();
    targets
}

fn matches(index: &HeadersIndex<u32>, headers: &FieldTable) -> Vec<u32> {
    sorted(search(index, headers, &mut HeadersScratch::default(), usize::MAX))
}

fn does_match(arguments: &FieldTable, headers: &FieldTable) -> bool {
    let mut index = HeadersIndex::new(1);
    index.insert(arguments.as_table(), 1);
    !matches(&index, headers).is_empty()
}

/// Whether the argument `k` of a binding fits the header `k` of a message.
fn fits(argument: Value<'_>, header: Value<'_>) -> bool {
    let found = does_match(&table([("k", argument)]), &table([("k", header)]));
    let found_by_any = does_match(&table([("x-match", text("any")), ("k", argument)]), &table([("k", header)]));
    assert_eq!(found, found_by_any, "`all` and `any` of one are the same");
    found
}

// The rules as the documentation has them.

#[test]
fn all_needs_every_argument_and_any_needs_one() {
    // RabbitMQ, "AMQP 0-9-1 Model Explained", headers exchange; the values are those of many a tutorial.
    let mut index = HeadersIndex::new(1);
    for (target, x_match) in [(1, Some("all")), (2, Some("any")), (3, None)] {
        let x_match = x_match.map(|x_match| ("x-match", text(x_match)));
        let arguments = [("format", text("pdf")), ("type", text("report"))];
        index.insert(table(x_match.into_iter().chain(arguments)).as_table(), target);
    }
    for (headers, targets) in [
        (&[("format", "pdf"), ("type", "report")][..], &[1, 2, 3][..]),
        (&[("type", "report"), ("by", "me"), ("format", "pdf")], &[1, 2, 3]),
        (&[("format", "pdf")], &[2]),
        (&[("format", "pdf"), ("type", "log")], &[2]),
        (&[("format", "zip"), ("type", "log")], &[]),
        (&[("Format", "pdf"), ("TYPE", "report")], &[]),
        (&[], &[]),
    ] {
        let headers = table(headers.iter().map(|(name, value)| (*name, text(value))));
        assert_eq!(matches(&index, &headers), targets, "{headers:?}");
    }
}

#[test]
fn arguments_starting_with_x_count_only_with_x() {
    let arguments = |x_match| table([("x-match", text(x_match)), ("x-a", text("1")), ("b", text("2"))]);
    let (only_x, only_b) = (table([("x-a", text("1"))]), table([("b", text("2"))]));
    let both = table([("x-a", text("1")), ("b", text("2"))]);
    for (x_match, expected) in [
        ("all", [false, true, true]),
        ("any", [false, true, true]),
        ("all-with-x", [false, false, true]),
        ("any-with-x", [true, true, true]),
    ] {
        let found = [&only_x, &only_b, &both].map(|headers| does_match(&arguments(x_match), headers));
        assert_eq!(found, expected, "{x_match}");
    }
    assert!(!does_match(&table([("X-a", text("1"))]), &only_x), "only a small x is one");
}

#[test]
fn all_of_nothing_is_every_message_and_any_of_nothing_is_none() {
    for headers in [table([]), table([("a", Value::Void)]), table([("x-match", text("any"))])] {
        assert!(does_match(&table([]), &headers));
        assert!(does_match(&table([("x-only", text("this"))]), &headers));
        for (x_match, expected) in [("all", true), ("all-with-x", true), ("any", false), ("any-with-x", false)] {
            assert_eq!(does_match(&table([("x-match", text(x_match))]), &headers), expected);
        }
        assert!(!does_match(&table([("x-match", text("any")), ("x-a", Value::Void)]), &headers));
    }
}

#[test]
fn a_void_argument_fits_any_value_and_a_void_header_no_other_argument() {
    for header in [Value::Void, text("v"), Value::I32(0), Value::Bool(false)] {
        assert!(fits(Value::Void, header));
        assert_eq!(fits(header, Value::Void), header == Value::Void);
    }
    assert!(!does_match(&table([("k", Value::Void)]), &table([])));
    assert!(!does_match(&table([("k", Value::Void)]), &table([("kk", text("v"))])));
}

#[test]
fn values_are_compared_without_their_types() {
    let integers =
        [Value::I8(7), Value::U8(7), Value::I16(7), Value::U16(7), Value::I32(7), Value::U32(7), Value::I64(7)];
    for argument in integers {
        for header in integers {
            assert!(fits(argument, header));
        }
        assert!(!fits(argument, Value::F64(7.0)), "an integer is not a float");
        assert!(!fits(argument, text("7")), "nor a string");
    }
    assert!(fits(Value::I8(-1), Value::I64(-1)));
    assert!(!fits(Value::I8(-1), Value::U8(255)));
    assert!(fits(Value::F32(0.5), Value::F64(0.5)));
    assert!(!fits(Value::F32(0.1), Value::F64(0.1)), "0.1 as a float is another number");
    assert!(!fits(Value::F64(0.0), Value::F64(-0.0)));
    assert!(fits(text("same"), Value::Bytes(b"same")));
    assert!(!fits(text("same"), text("Same")));
    assert!(!fits(text("same"), text("sam")));
    assert!(!fits(text(""), Value::Void));
    assert!(!fits(Value::Bool(true), Value::I8(1)));
    assert!(fits(Value::Decimal(2, 10), Value::Decimal(2, 10)));
    assert!(!fits(Value::Decimal(2, 10), Value::Decimal(1, 1)));
}

#[test]
fn timestamps_of_messages_are_milliseconds_and_those_of_bindings_seconds() {
    assert!(!fits(Value::Timestamp(5), Value::Timestamp(5)));
    assert!(fits(Value::Timestamp(5000), Value::Timestamp(5)));
    assert!(fits(Value::I64(5000), Value::Timestamp(5)));
    assert!(fits(Value::Timestamp(5), Value::I8(5)));
    assert!(!fits(Value::I64(-1000), Value::Timestamp(u64::MAX)));
    assert!(fits(Value::Timestamp(0), Value::Timestamp(0)));
}

#[test]
fn inside_of_arrays_and_tables_types_and_order_count() {
    fn array(values: &[Value<'_>]) -> FieldTable {
        FieldTable::build(|t| {
            t.array("k", values.iter().copied());
        })
    }
    let of_table = |inner: &FieldTable| table([("k", Value::Table(inner.as_table()))]);
    let ab = table([("a", Value::I32(1)), ("b", Value::I32(2))]);
    let ba = table([("b", Value::I32(2)), ("a", Value::I32(1))]);
    let wide = table([("a", Value::I64(1)), ("b", Value::I32(2))]);
    for (argument, header, expected) in [
        (array(&[Value::I8(1)]), array(&[Value::I8(1)]), true),
        (array(&[Value::I8(1)]), array(&[Value::I32(1)]), false),
        (array(&[Value::I8(1)]), array(&[Value::I8(1), Value::I8(1)]), false),
        (array(&[text("a"), text("b")]), array(&[text("ab")]), false),
        (array(&[Value::Timestamp(5)]), array(&[Value::Timestamp(5)]), true),
        (of_table(&ab), of_table(&ab), true),
        (of_table(&ab), of_table(&ba), false),
        (of_table(&ab), of_table(&wide), false),
        (array(&[]), of_table(&table([])), true),
        (array(&[Value::Void]), of_table(&table([("", Value::Void)])), false),
    ] {
        assert_eq!(does_match(&argument, &header), expected, "{argument:?} {header:?}");
    }
    // Two letters for one type, and two bytes for one truth.
    let (left, right) = (b"\x01kA\0\0\0\x0bl\0\0\0\0\0\0\0\x01t\x01", b"\x01kA\0\0\0\x0bL\0\0\0\0\0\0\0\x01t\x02");
    let [left, right] = [left, right].map(|bytes| FieldTable::from(Table::check(bytes).unwrap()));
    assert!(does_match(&left, &right));
}

#[test]
fn of_headers_with_one_name_the_last_counts_and_of_arguments_each() {
    let twice = table([("k", text("old")), ("other", text("x")), ("k", text("new"))]);
    assert!(does_match(&table([("k", text("new"))]), &twice));
    assert!(!does_match(&table([("k", text("old"))]), &twice));
    assert!(!does_match(&twice, &twice));
    let any = table([("x-match", text("any")), ("k", text("old")), ("k", text("new"))]);
    assert!(does_match(&any, &twice));
    assert!(does_match(&any, &table([("k", text("old"))])));
}

#[test]
fn targets_come_in_ascending_order_and_once() {
    let mut index = HeadersIndex::new(1);
    for target in [9, 3, 5] {
        index.insert(table([("a", Value::I8(1))]).as_table(), target);
        index.insert(table([("b", Value::Void)]).as_table(), target);
        index.insert(table([]).as_table(), target + 1);
    }
    let any = table([("x-match", text("any")), ("a", Value::Void), ("b", Value::Void)]);
    index.insert(any.as_table(), 5);
    assert_eq!(matches(&index, &table([("a", Value::I64(1)), ("b", Value::Void)])), [3, 4, 5, 6, 9, 10]);
}

// What is refused.

#[test]
fn x_match_is_one_of_four_strings_and_anything_else_is_refused_in_rabbitmqs_words() {
    let check = |x_match: Value<'_>| {
        let arguments = table([("a", Value::Void), ("x-match", x_match), ("x-match", Value::Void)]);
        HeadersIndex::<u32>::check(arguments.as_table()).map_err(|error| error.to_string())
    };
    for good in ["all", "any", "all-with-x", "any-with-x"] {
        assert_eq!(check(text(good)), Ok(()));
    }
    assert_eq!(HeadersIndex::<u32>::check(Table::EMPTY), Ok(()));
    for (bad, quoted) in [
        (text("bogus"), r#"<<"bogus">>"#),
        (text("ALL"), r#"<<"ALL">>"#),
        (text(""), "<<>>"),
        (text(r#"a "b" \"#), r#"<<"a \"b\" \\">>"#),
        (Value::LongStr(&[1, 255]), "<<1,255>>"),
    ] {
        let expected =
            format!("Invalid x-match field value {quoted}; expected all, any, all-with-x, or any-with-x");
        assert_eq!(check(bad), Err(expected));
    }
    let inner = table([("n", Value::I32(-1)), ("s", text("x"))]);
    let of_array = FieldTable::build(|t| {
        t.array("k", [Value::Bool(true), Value::Table(inner.as_table())]);
    });
    for (bad, quoted) in [
        (Value::I8(1), "byte (value 1)"),
        (Value::Bytes(b"all"), r#"binary (value <<"all">>)"#),
        (Value::Void, "void (value undefined)"),
        (Value::Bool(false), "bool (value false)"),
        (Value::F32(1.0), "float (value 1.0)"),
        (Value::Decimal(2, 314), "decimal (value {2,314})"),
        (Value::Table(Table::EMPTY), "table (value [])"),
        (
            of_array.as_table().get("k").unwrap(),
            r#"array (value [{bool,true},{table,[{<<"n">>,signedint,-1},{<<"s">>,longstr,<<"x">>}]}])"#,
        ),
    ] {
        let expected = format!("Invalid x-match field type {quoted}; expected longstr");
        assert_eq!(check(bad), Err(expected));
    }
}

#[test]
fn a_huge_x_match_is_quoted_only_as_far_as_a_reply_text_goes() {
    let bytes = vec![200; 100_000];
    let InvalidXMatch::Value { value } =
        XMatch::of(table([("x-match", Value::LongStr(&bytes))]).as_table()).err().unwrap()
    else {
        panic!("a string is a string")
    };
    assert!((255..2000).contains(&value.len()));
    let array = FieldTable::build(|t| {
        t.array("x-match", vec![Value::LongStr(&bytes[..100]); 1000]);
    });
    let InvalidXMatch::Type { value, .. } = XMatch::of(array.as_table()).err().unwrap() else {
        panic!("an array is no string")
    };
    assert!((255..2000).contains(&value.len()));
}

#[test]
fn a_binding_nobody_checked_matches_as_all() {
    let arguments = table([("x-match", text("bogus")), ("a", text("1")), ("b", text("2"))]);
    assert!(!does_match(&arguments, &table([("a", text("1"))])));
    assert!(does_match(&arguments, &table([("b", text("2")), ("a", text("1"))])));
}

// Adding and removing.

#[test]
fn bindings_that_differ_in_what_takes_no_part_are_counted() {
    let mut index = HeadersIndex::new(1);
    let plain = table([("a", Value::I8(1))]);
    let noted = table([("x-note", text("!")), ("a", Value::I8(1)), ("x-match", text("all"))]);
    index.insert(plain.as_table(), 1);
    index.insert(noted.as_table(), 1);
    assert_eq!(index.by_requirements.len(), 1);
    index.remove(plain.as_table(), 1);
    assert_eq!(matches(&index, &plain), [1]);
    index.remove(noted.as_table(), 1);
    assert_eq!(matches(&index, &plain), []);
    assert!(index.hooks.is_empty() && index.patterns.is_empty());
}

#[test]
fn removing_what_is_not_there_changes_nothing() {
    let mut index = HeadersIndex::new(1);
    let there = table([("a", Value::I8(1))]);
    index.insert(there.as_table(), 1);
    for arguments in [
        table([]),
        table([("a", Value::Void)]),
        table([("a", Value::I8(2))]),
        table([("x-match", text("any")), ("a", Value::I8(1))]),
        table([("x-match", text("any"))]),
    ] {
        index.remove(arguments.as_table(), 1);
    }
    index.remove(there.as_table(), 2);
    assert_eq!(matches(&index, &there), [1]);
}

// The bound on the work.

fn candidates_count(index: &HeadersIndex<u32>, headers: &FieldTable) -> usize {
    let mut scratch = HeadersScratch::default();
    search(index, headers, &mut scratch, usize::MAX);
    scratch.seen.iter().map(|bits| bits.count_ones() as usize).sum()
}

#[test]
fn bindings_of_other_values_are_not_looked_at() {
    let mut index = HeadersIndex::new(1);
    for n in 0..10_000 {
        let (id, name) = (n.to_string(), format!("name{n}"));
        let fields = [("type", text("event")), ("tenant", Value::Void), ("serial", text(&id))];
        index.insert(table(fields).as_table(), n);
        index.insert(table([("x-match", text("any"))].into_iter().chain(fields[2..].to_vec())).as_table(), n);
        index.insert(table([(&name[..], Value::Void)]).as_table(), n);
    }
    let headers = |id| table([("type", text("event")), ("tenant", Value::I8(1)), ("serial", text(id))]);
    assert_eq!(matches(&index, &headers("77")), [77]);
    assert!(candidates_count(&index, &headers("77")) <= 3);
    assert!(candidates_count(&index, &headers("none")) <= 1);
}

/// No single value leads to few of these.
#[test]
fn bindings_of_common_values_are_found_by_all_of_their_values_together() {
    let mut index = HeadersIndex::new(1);
    let number = Value::I32;
    for n in 0..10_000 {
        let fields = [("column", number(n % 100)), ("row", number(n / 100)), ("unit", Value::Void)];
        index.insert(table(fields).as_table(), n.cast_unsigned());
    }
    let headers = |row, column| {
        table([("other", number(1)), ("row", number(row)), ("column", number(column)), ("unit", text("m"))])
    };
    assert_eq!(matches(&index, &headers(70, 3)), [7003]);
    assert_eq!(matches(&index, &headers(70, 100)), []);
    assert_eq!(matches(&index, &table([("row", number(1)), ("column", number(1))])), []);
    let mut steps = 10_000;
    let mut scratch = HeadersScratch::default();
    index.begin(headers(70, 3).as_table(), &mut scratch, &mut steps);
    assert!(index.go_on(&mut scratch, &mut steps, |_| ()));
    assert!(10_000 - steps < 100 * STEPS_PER_LOOKUP, "{} steps", 10_000 - steps);
}

#[test]
fn a_binding_is_looked_at_once_however_many_headers_lead_to_it() {
    let mut index = HeadersIndex::new(1);
    let names: Vec<String> = (0..100).map(|n| format!("name{n}")).collect();
    let fields = names.iter().map(|name| (&name[..], Value::I8(1)));
    index.insert(table([("x-match", text("any"))].into_iter().chain(fields.clone())).as_table(), 1);
    assert_eq!(search(&index, &table(fields), &mut HeadersScratch::default(), usize::MAX), [1]);
}

#[test]
fn hostile_tables_take_no_longer_than_sorting_them() {
    // Each of these would take minutes if a field were compared with every other.
    let same = table((0..100_000).map(|n| ("same", Value::I32(n))));
    let names: Vec<String> = (0..100_000).map(|n| format!("name{n}")).collect();
    let distinct = table(names.iter().map(|name| (&name[..], Value::Void)));
    let any = table([("x-match", text("any"))].into_iter().chain((0..100_000).map(|n| ("same", Value::I32(n)))));
    let mut index = HeadersIndex::new(1);
    for (target, arguments) in (0..).zip([&same, &distinct, &any, &any]) {
        index.insert(arguments.as_table(), target);
    }
    assert_eq!(matches(&index, &same), [2, 3]);
    assert_eq!(matches(&index, &distinct), [1]);
    for (target, arguments) in (0..).zip([&same, &distinct, &any, &any]) {
        index.remove(arguments.as_table(), target);
    }
    assert!(index.hooks.is_empty());
}

// The index against a straight loop over all bindings.

#[derive(Default)]
struct Model(Vec<(FieldTable, u32)>);

impl Model {
    fn matches(&self, headers: &FieldTable) -> Vec<u32> {
        let headers = headers.as_table();
        let matching = self.0.iter().filter(|(arguments, _)| headers_match(arguments.as_table(), headers));
        let found: BTreeSet<u32> = matching.map(|(_, target)| *target).collect();
        found.into_iter().collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(FieldTable, u32),
    /// Removes a binding inserted before, if there is one: the number picks it.
    RemoveKnown(usize),
    /// Removes a binding of a target that has none.
    RemoveUnknown(FieldTable),
    Match(FieldTable),
}

/// The values that fields have, few enough to be equal often. Some are equal only to RabbitMQ, some only to others.
fn add_field(t: &mut TableBuilder, name: &str, value: usize) {
    match value {
        0 => t.field(name, Value::I8(1)),
        1 => t.field(name, Value::I64(1)),
        2 => t.field(name, Value::F32(1.0)),
        3 => t.field(name, Value::F64(1.0)),
        4 => t.field(name, Value::LongStr(b"1")),
        5 => t.field(name, Value::Bytes(b"1")),
        6 => t.field(name, Value::Timestamp(1)),
        7 => t.field(name, Value::I32(1000)),
        8 => t.field(name, Value::Bool(true)),
        9 => t.array(name, []),
        10 => t.table(name, |_| ()),
        11 => t.array(name, [Value::I8(1)]),
        12 => t.array(name, [Value::I32(1)]),
        13 => t.table(name, |t| add_field(t, "k", 1)),
        _ => t.field(name, Value::Void),
    };
}

fn fields() -> impl Strategy<Value = Vec<(&'static str, usize)>> {
    let name = prop::sample::select(&["a", "a", "b", "b", "c", "x-a", "x-b", "", "x-match"][..]);
    let value = prop_oneof![3 => 0..2usize, 2 => 2..14usize, 1 => Just(14usize)];
    prop::collection::vec((name, value), 0..5)
}

fn headers() -> impl Strategy<Value = FieldTable> {
    fields().prop_map(|fields| FieldTable::build(|t| fields.into_iter().for_each(|(n, v)| add_field(t, n, v))))
}

fn arguments() -> impl Strategy<Value = FieldTable> {
    let x_match = prop::sample::select(&["", "all", "any", "all-with-x", "any-with-x"][..]);
    (x_match, fields()).prop_map(|(x_match, fields)| {
        FieldTable::build(|t| {
            if !x_match.is_empty() {
                t.field("x-match", text(x_match));
            }
            for (name, value) in fields.into_iter().filter(|(name, _)| *name != "x-match") {
                add_field(t, name, value);
            }
        })
    })
}

fn steps_of_a_run() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (arguments(), 0..8u32).prop_map(|(arguments, target)| Step::Insert(arguments, target)),
        4 => any::<usize>().prop_map(Step::RemoveKnown),
        1 => arguments().prop_map(Step::RemoveUnknown),
        5 => headers().prop_map(Step::Match),
    ];
    prop::collection::vec(step, 1..50)
}

fn check_structure(index: &HeadersIndex<u32>) -> Result<(), TestCaseError> {
    prop_assert_eq!(index.patterns.len() - index.free.len(), index.by_requirements.len());
    let mut hung: Vec<(&[u8], PatternId)> = vec![];
    let mut with = BTreeMap::<SchemaId, usize>::new();
    for (id, pattern) in (0..).map(PatternId).zip(&index.patterns) {
        prop_assert_eq!(pattern.targets.is_empty(), index.free.contains(&id));
        match &pattern.hangs {
            Hangs::Under(hooks) => {
                hung.extend(pattern.requirements.fields[hooks.clone()].iter().map(|field| (&**field, id)));
            }
            Hangs::With(schema) => *with.entry(*schema).or_insert(0) += 1,
        }
    }
    for (&schema, &count) in &with {
        prop_assert_eq!(index.schemas.get(schema).patterns_count, count);
        let name = index.schemas.get(schema).hook();
        prop_assert!(index.hook(name).is_some_and(|hook| hook.schemas.contains(&schema)));
    }
    let schemas_count: usize = index.hooks.iter().map(|hook| hook.schemas.len()).sum();
    prop_assert_eq!(schemas_count, with.len());
    let hooks = index.hooks.iter().flat_map(|hook| hook.patterns.iter().map(|id| (&*hook.field, *id)));
    let mut hooks: Vec<(&[u8], PatternId)> = hooks.collect();
    hooks.sort_unstable();
    hung.sort_unstable();
    prop_assert_eq!(hooks, hung);
    Ok(())
}

/// Does the steps with index and model side by side, and returns for each match how many targets it found, of how
/// many bindings.
fn run(steps: Vec<Step>) -> Result<Vec<(usize, usize)>, TestCaseError> {
    let mut index = HeadersIndex::new(7);
    let mut model = Model::default();
    let mut scratch = HeadersScratch::default();
    let mut counts = vec![];
    for step in steps {
        match step {
            Step::Insert(arguments, target) => {
                index.insert(arguments.as_table(), target);
                model.0.push((arguments, target));
            }
            Step::RemoveKnown(pick) if !model.0.is_empty() => {
                let (arguments, target) = model.0.swap_remove(pick % model.0.len());
                index.remove(arguments.as_table(), target);
            }
            Step::RemoveKnown(_) => {}
            Step::RemoveUnknown(arguments) => index.remove(arguments.as_table(), 99),
            Step::Match(headers) => {
                let expected = model.matches(&headers);
                for at_once in [1, 2, 3, usize::MAX] {
                    let found = sorted(search(&index, &headers, &mut scratch, at_once));
                    prop_assert_eq!(&found, &expected, "{:?} of {:?}", headers, model.0);
                }
                counts.push((expected.len(), model.0.len()));
            }
        }
        check_structure(&index)?;
    }
    for (arguments, target) in model.0 {
        index.remove(arguments.as_table(), target);
    }
    prop_assert!(index.patterns.is_empty() && index.hooks.is_empty() && index.unconditional.is_empty());
    Ok(counts)
}

proptest! {
    #[test]
    fn after_any_inserts_and_removes_the_index_matches_what_the_model_matches(steps in steps_of_a_run()) {
        run(steps)?;
    }

    #[test]
    fn one_binding_and_one_message_match_as_the_model_says(arguments in arguments(), headers in headers()) {
        let model = Model(vec![(arguments.clone(), 1)]);
        prop_assert_eq!(does_match(&arguments, &headers), !model.matches(&headers).is_empty());
    }
}

#[test]
fn the_random_runs_are_worth_running() {
    let mut runner = TestRunner::deterministic();
    let mut counts = vec![];
    for _ in 0..200 {
        let steps = steps_of_a_run().new_tree(&mut runner).unwrap().current();
        counts.extend(run(steps).unwrap());
    }
    let some = counts.iter().filter(|(found, _)| *found > 0).count();
    let not_all = counts.iter().filter(|(found, bound)| *found > 0 && found < bound).count();
    println!("of {} matches {some} find something, {not_all} of these not everything", counts.len());
    assert!((counts.len() * 4 / 10..counts.len() * 9 / 10).contains(&some));
    assert!(not_all > counts.len() * 3 / 10);
}

/// Random runs do not bring so many together that two hang in one place.
#[test]
fn bindings_that_are_found_by_all_of_their_values_together_come_and_go() {
    let fields = |names: [&'static str; 2], n: i32| table(names.into_iter().zip([n % 4, n / 4].map(Value::I32)));
    let insert = |names| (0..16).map(move |n| Step::Insert(fields(names, n), n.cast_unsigned()));
    let matching = |names| (0..16).map(move |n| Step::Match(fields(names, n)));
    let (stays, goes, comes) = (["column", "row"], ["depth", "height"], ["east", "north"]);
    let steps = insert(stays).chain(insert(goes)).chain(matching(goes));
    // The last that came goes first.
    let one_by_one = (16..32).rev().flat_map(|last| [Step::RemoveKnown(last)].into_iter().chain(matching(goes)));
    let counts = run(steps.chain(one_by_one).chain(insert(comes)).chain(matching(comes)).collect()).unwrap();
    let found: usize = counts.iter().map(|(found, _)| found).sum();
    assert_eq!(found, 16 + (0..16).sum::<usize>() + 16);
}
