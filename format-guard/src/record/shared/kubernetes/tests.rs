use serde_json::{Value, json};

use super::*;
use crate::record::{
    Content, Permit,
    shared::{Armed, Format, Shared},
};

mod api_server;

const ID: &str = "iscsi:iqn.2019-10.io.longhorn:pvc-0123abcd-4567-89ab-cdef-0123456789ab,lun=1";

fn format(node: &str, generation: u64) -> Format {
    let content = Content { types: vec!["ext4".to_owned()], uuid: None, label: None };
    Format { generation, content: Some(content), marks: Vec::new(), node: node.to_owned(), at: 1 }
}

fn holding(node: &str, generation: u64) -> Shared {
    Shared { format: Some(format(node, generation)), ..Shared::default() }
}

/// As an API server gives it back.
fn of_json(value: Value) -> GuardedVolume {
    serde_json::from_value(value).expect("an object")
}

fn object(spec: &Value, status: &Value) -> GuardedVolume {
    of_json(json!({"metadata": {"name": "x", "resourceVersion": "7"}, "spec": spec, "status": status}))
}

#[test]
fn a_name_is_one_volumes_own_and_may_be_an_objects() {
    let names: BTreeSet<String> =
        [ID, "rbd:pool/image", "dm:LVM-x", "dm:LVM-y"].map(|id| object::name(&id.into())).into();
    assert_eq!(names.len(), 4);
    assert!(names.iter().all(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())));
    // Kept: another name would be another object.
    assert_eq!(object::name(&"dm:LVM-x".into()), "135cf63eb41960971b5c4f25b665da09");
}

#[test]
fn a_new_object_names_its_volume_and_goes_with_it() {
    let mut owner = PersistentVolume::default();
    owner.metadata.name = Some("pvc-0123abcd-4567-89ab-cdef-0123456789ab".to_owned());
    owner.metadata.uid = Some("uid".to_owned());
    let value = serde_json::to_value(GuardedVolume::new(&ID.into(), Some(&owner))).expect("JSON");
    assert_eq!(
        (&value["kind"], &value["apiVersion"]),
        (&json!("GuardedVolume"), &json!("format-guard.io/v1alpha1"))
    );
    assert_eq!(value["metadata"]["labels"][object::NAME_LABEL], value["metadata"]["name"]);
    assert_eq!(
        value["spec"],
        json!({"id": ID, "persistentVolume": "pvc-0123abcd-4567-89ab-cdef-0123456789ab"})
    );
    assert_eq!(value["metadata"]["ownerReferences"][0]["uid"], "uid");
    assert!(value.get("status").is_none(), "{value}");
}

#[test]
fn what_is_written_is_read_again() {
    let shared = Shared {
        armed: Some(Armed { node: "a".to_owned(), lease: 5, by_permit: true, doubted: false, at: 2 }),
        permit: Some(Permit { reason: "r".to_owned(), uid: 0, at: 1, expires: 2, used: false }),
        ..holding("a", 3)
    };
    let claim = Claim { lease: 5, node: "a".to_owned(), revision: 7 };
    let mut written = GuardedVolume::with_status(&ID.into(), "7", Some(&shared), Some(&claim), None);
    assert!(!serde_json::to_string(&written).expect("JSON").contains("null"), "{:?}", written.status);
    written.spec = json!({"id": ID});
    let read = object::read(&written, &ID.into()).expect("read");
    assert_eq!(read.seen, Observed { shared: Some(shared), revision: 7, claim: Some(claim) });
}

#[test]
fn what_no_agent_writes_is_not_taken() {
    let id = &ID.into();
    assert!(object::read(&object(&json!({"id": ID}), &Value::Null), id).is_ok());
    let long = "x".repeat(100_000);
    for (spec, status, word) in [
        (json!({"id": "dm:LVM-other"}), json!({}), "another volume's"),
        (json!({}), json!({}), "missing field"),
        (
            json!({"id": ID}),
            json!({"record": {"version": 1, "format": format("a\u{1b}", 1)}}),
            "no agent writes",
        ),
        (json!({"id": ID}), json!({"record": {"version": 1, "more": 1}}), "unknown field"),
        (json!({"id": ID}), json!({"record": {"version": 3}}), "version 3"),
        (json!({"id": ID}), json!({"record": {"version": 1, "more": long}}), "64 KiB"),
        (json!({"id": ID}), json!({"record": 1}), "invalid type"),
        (json!({"id": ID}), json!({"claim": {"node": "a", "lease": "b_0000000000000001"}}), "its claim"),
        (json!({"id": ID}), json!({"claim": {"node": "a", "lease": "a_1"}}), "its claim"),
        (
            json!({"id": ID, "permit": {"reason": "r", "by": "o", "from": "now", "until": "later"}}),
            json!({}),
            "no time",
        ),
        (
            json!({"id": ID, "permit": {"reason": "\u{7}", "by": "o", "from": "", "until": ""}}),
            json!({}),
            "terminal",
        ),
    ] {
        let said = object::read(&object(&spec, &status), id).expect_err(word).to_string();
        assert!(said.contains(word), "{word}: {said}");
    }
    let no_version = of_json(json!({"metadata": {"name": "x", "resourceVersion": "v7"}, "spec": {"id": ID}}));
    assert!(object::read(&no_version, id).is_err());
}

#[test]
fn a_permit_is_offered_until_it_was_taken_up() {
    let given = |minute: u32| json!({"reason": "r", "by": "op", "from": "2026-01-31T12:00:00Z", "until": format!("2026-01-31T12:{minute:02}:00Z")});
    let permit = |status: Value| {
        let read =
            object::read(&object(&json!({"id": ID, "permit": given(5)}), &status), &ID.into()).expect("read");
        read.seen.shared.and_then(|shared| shared.permit)
    };
    let offered = permit(json!({})).expect("offered");
    assert_eq!((offered.reason.as_str(), offered.expires - offered.at, offered.used), ("r (op)", 300, false));
    assert_eq!(permit(json!({"permit": given(4)})), Some(offered), "an earlier one was taken up");
    assert_eq!(permit(json!({"permit": given(5)})), None, "it was used");
}
