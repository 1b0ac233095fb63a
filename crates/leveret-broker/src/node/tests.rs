//! The node as the fold of its changes.

use super::*;

fn short(name: &str) -> ShortString {
    ShortString::new(name).unwrap()
}

fn user(name: &str) -> UserName {
    short(name).into()
}

fn vhost(name: &str) -> VhostName {
    short(name).into()
}

fn set_user(name: &str, password: &str) -> NodeChange {
    let password = Some(PasswordHash::new(password.as_bytes(), [1; password::SALT_BYTES]));
    NodeChange::UserSet { name: user(name), password, tags: Vec::new() }
}

fn permissions(name: &str, vhost_name: &str) -> NodeChange {
    let all = || ".*".to_owned();
    let (user, vhost) = (user(name), vhost(vhost_name));
    NodeChange::PermissionsSet { user, vhost, configure: all(), write: all(), read: all() }
}

/// One with two virtual hosts and two users, everything said that can be said.
fn node() -> Node {
    let mut node = Node::with_guest();
    let metadata = VhostMetadata { description: "orders".into(), ..VhostMetadata::default() };
    let (write, read) = ("^{username}\\.".to_owned(), String::new());
    for change in [
        NodeChange::VhostAdded { stream: node.next_stream(), name: vhost("shop") },
        NodeChange::VhostDescribed { name: vhost("shop"), metadata },
        NodeChange::VhostLimited {
            name: vhost("shop"),
            limits: VhostLimits { max_queues: Some(7), max_connections: None },
        },
        set_user("marie", "secret"),
        NodeChange::UserLimited {
            name: user("marie"),
            limits: UserLimits { max_channels: Some(3), max_connections: None },
        },
        permissions("marie", "shop"),
        NodeChange::TopicPermissionsSet {
            user: user("marie"),
            vhost: vhost("shop"),
            exchange: short("amq.topic").into(),
            write,
            read,
        },
        NodeChange::GlobalParameterSet { name: short("color"), value: "\"brown\"".into() },
    ] {
        node.apply(change).unwrap();
    }
    node
}

/// Who has not logged in may say a name that is as long as a frame.
#[test]
fn of_a_long_name_the_log_shows_as_much_as_a_name_can_have() {
    let error = Node::default().log_in(&"é".repeat(3000), b"x", Origin::Remote).unwrap_err();
    assert_eq!(error.to_string(), format!("user '{}...' does not exist", "é".repeat(127)));
    let error = Node::default().log_in(&"n".repeat(255), b"x", Origin::Remote).unwrap_err();
    assert_eq!(error.to_string(), format!("user '{}' does not exist", "n".repeat(255)));
}

#[test]
fn guest_logs_in_from_this_machine_only() {
    let node = Node::with_guest();
    assert_eq!(node.log_in("guest", b"guest", Origin::Loopback), Ok(user("guest")));
    let remote = node.log_in("guest", b"guest", Origin::Remote);
    assert_eq!(remote, Err(LoginError::LoopbackOnly("guest".into())));
}

#[test]
fn nobody_logs_in_without_the_password() {
    let mut node = node();
    assert_eq!(node.log_in("marie", b"secret", Origin::Remote), Ok(user("marie")));
    assert_eq!(node.log_in("marie", b"secre", Origin::Remote), Err(LoginError::WrongPassword("marie".into())));
    assert_eq!(node.log_in("marie", b"", Origin::Remote), Err(LoginError::BlankPassword("marie".into())));
    assert_eq!(node.log_in("mary", b"secret", Origin::Remote), Err(LoginError::NoSuchUser("mary".into())));
    node.apply(NodeChange::UserSet { name: user("marie"), password: None, tags: Vec::new() }).unwrap();
    assert_eq!(node.log_in("marie", b"secret", Origin::Remote), Err(LoginError::WrongPassword("marie".into())));
    assert!(node.open("shop", &user("marie")).is_ok(), "a new password takes no permissions away");
}

#[test]
fn a_virtual_host_is_opened_by_whom_it_has_permissions_for() {
    let node = node();
    assert_eq!(node.open("shop", &user("marie")).unwrap().0, vhost("shop"));
    assert_eq!(node.open("/", &user("marie")).unwrap_err(), OpenError::NoAccess);
    assert_eq!(node.open("shop", &user("guest")).unwrap_err(), OpenError::NoAccess);
    assert_eq!(node.open("nowhere", &user("guest")).unwrap_err(), OpenError::NoSuchVhost);
}

/// What a node says once more makes the same node, whatever is known before.
#[test]
fn a_restatement_is_the_whole_node() {
    let node = node();
    let mut restated = Node::default();
    for change in node.restated() {
        restated.apply(change).unwrap();
    }
    restated.set_loopback_users([user("guest")]);
    assert_eq!(restated, node);
    // Whoever was deleted by a change that is lost is gone all the same.
    restated.apply(set_user("lost", "x")).unwrap();
    for change in node.restated() {
        restated.apply(change).unwrap();
    }
    assert_eq!(restated, node);
}

#[test]
fn permissions_go_with_their_virtual_host_and_with_their_user() {
    let mut node = node();
    let stream = node.vhosts()["shop"].stream;
    node.apply(NodeChange::VhostDeleted { name: vhost("shop") }).unwrap();
    let next = node.next_stream();
    assert!(next > stream, "a stream is never given twice");
    node.apply(NodeChange::VhostAdded { stream: next, name: vhost("shop") }).unwrap();
    assert_eq!(node.open("shop", &user("marie")).unwrap_err(), OpenError::NoAccess);
    assert!(node.users()["marie"].topic_permissions().is_empty());

    node.apply(permissions("marie", "/")).unwrap();
    node.apply(NodeChange::UserDeleted { name: user("marie") }).unwrap();
    node.apply(set_user("marie", "secret")).unwrap();
    assert_eq!(node.open("/", &user("marie")).unwrap_err(), OpenError::NoAccess);
}

#[test]
fn a_change_that_cannot_be_changes_nothing() {
    let mut node = node();
    let protected = VhostMetadata { protected_from_deletion: true, ..VhostMetadata::default() };
    node.apply(NodeChange::VhostDescribed { name: vhost("shop"), metadata: protected }).unwrap();
    let before = node.clone();
    let pattern = |configure: &str| {
        let (user, vhost, configure) = (user("marie"), vhost("/"), configure.to_owned());
        NodeChange::PermissionsSet { user, vhost, configure, write: String::new(), read: String::new() }
    };
    for (change, text) in [
        (NodeChange::VhostAdded { stream: 9, name: vhost("shop") }, "virtual host 'shop' exists"),
        (NodeChange::VhostAdded { stream: 0, name: vhost("x") }, "stream 0 is not free for a virtual host"),
        (NodeChange::VhostAdded { stream: 2, name: vhost("x") }, "stream 2 is not free for a virtual host"),
        (NodeChange::VhostAdded { stream: 2, name: vhost("") }, "the name of a virtual host must not be empty"),
        (NodeChange::VhostDeleted { name: vhost("shop") }, "virtual host 'shop' is protected from deletion"),
        (NodeChange::VhostDeleted { name: vhost("x") }, "virtual host 'x' does not exist"),
        (NodeChange::UserDeleted { name: user("x") }, "user 'x' does not exist"),
        (set_user("", "x"), "the name of a user must not be empty"),
        (permissions("x", "/"), "user 'x' does not exist"),
        (permissions("marie", "x"), "virtual host 'x' does not exist"),
        (
            pattern("^(?!amq)"),
            "the pattern '^(?!amq)' for configure cannot be used: look-ahead and look-behind are not supported, as \
             matching takes linear time",
        ),
        (NodeChange::GlobalParameterCleared { name: short("x") }, "there is no global parameter 'x'"),
    ] {
        assert_eq!(node.apply(change).unwrap_err().to_string(), text);
        assert_eq!(node, before, "{text}");
    }
}

#[test]
fn when_all_streams_are_used_up_a_further_virtual_host_is_refused() {
    let mut node = Node::with_guest();
    let added = |node: &Node, name| NodeChange::VhostAdded { stream: node.next_stream(), name: vhost(name) };
    node.apply(NodeChange::Restated { last_stream: u32::MAX - 2 }).unwrap();
    let (last, one_more) = (added(&node, "last"), NodeChange::VhostAdded { stream: u32::MAX, name: vhost("more") });
    assert_eq!(node.apply(one_more), Err(NodeError::StreamTaken(u32::MAX)), "a journal may say so");
    assert_eq!(node.apply(last), Ok(()));
    node.apply(NodeChange::VhostDeleted { name: vhost("last") }).unwrap();
    let refused = added(&node, "again");
    assert_eq!(node.apply(refused), Err(NodeError::StreamTaken(u32::MAX)), "no stream is given twice");
    node.apply(NodeChange::Restated { last_stream: u32::MAX }).unwrap();
    let refused = added(&node, "again");
    assert_eq!(node.apply(refused), Err(NodeError::StreamTaken(u32::MAX)));
}
