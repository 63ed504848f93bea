//! Notifications as the documentation of registries shows them.

use cvmfs_core::error::Error;
use cvmfs_ingest::image::listen::payload::{Action, Form, parse};

const DIGEST: &str = "sha256:954b378c375d852eb3c63ab88978f640b4348b01c1b3456a024a81536dafbbf4";

/// The hints of a notification, each as its action and image, and how many names are refused.
fn read(form: Form, body: &str) -> (Vec<String>, usize) {
    let notification = parse(body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"));
    assert_eq!(notification.form, form, "{body}");
    let show = |action| if action == Action::Push { "push" } else { "delete" };
    let hints = notification.hints.iter().map(|hint| format!("{} {}", show(hint.action), hint.image)).collect();
    (hints, notification.refused.len())
}

fn hints(form: Form, body: &str) -> Vec<String> {
    let (hints, refused) = read(form, body);
    assert_eq!(refused, 0, "{body}");
    hints
}

fn harbor(kind: &str, resources: &str) -> String {
    format!(
        r#"{{"type": "{kind}", "occur_at": 1586922308, "operator": "admin", "event_data": {{
        "resources": [{resources}],
        "repository": {{"date_created": 1586922308, "name": "debian", "namespace": "test-webhook",
                        "repo_full_name": "test-webhook/debian", "repo_type": "private"}}}}}}"#
    )
}

#[test]
fn harbor_in_its_own_form() {
    let tagged = format!(
        r#"{{"digest": "{DIGEST}", "tag": "latest", "resource_url": "hub.harbor.com/test-webhook/debian:latest"}}"#
    );
    let untagged = format!(
        r#"{{"digest": "{DIGEST}", "tag": "{DIGEST}", "resource_url": "hub.harbor.com/test-webhook/debian@{DIGEST}"}}"#
    );
    for (kind, resources, expected) in [
        ("PUSH_ARTIFACT", &tagged, &["push https://hub.harbor.com/test-webhook/debian:latest"][..]),
        // A piece of an image.
        ("PUSH_ARTIFACT", &untagged, &[]),
        ("DELETE_ARTIFACT", &tagged, &["delete https://hub.harbor.com/test-webhook/debian"]),
        ("DELETE_ARTIFACT", &untagged, &["delete https://hub.harbor.com/test-webhook/debian"]),
        ("PULL_ARTIFACT", &tagged, &[]),
        ("SCANNING_COMPLETED", &tagged, &[]),
        ("QUOTA_EXCEED", &tagged, &[]),
        ("SOMETHING_NEW", &tagged, &[]),
    ] {
        assert_eq!(hints(Form::Harbor, &harbor(kind, resources)), expected, "{kind}");
    }
}

#[test]
fn harbor_replication_and_retention() {
    let replication = r#"{"type": "REPLICATION", "occur_at": 1653921235, "operator": "MANUAL", "event_data": {"replication": {
        "harbor_hostname": "source.example.org", "job_status": "Success", "artifact_type": "image",
        "override_mode": true, "trigger_type": "MANUAL", "policy_creator": "admin", "execution_timestamp": 1653921225,
        "src_resource": {"registry_type": "harbor", "endpoint": "https://source.example.org", "namespace": "library"},
        "dest_resource": {"registry_name": "dst", "registry_type": "harbor", "endpoint": "https://dst.example.org:8443/",
                          "namespace": "mirror"},
        "successful_artifact": [
            {"type": "image", "status": "Success", "name_tag": "alpine [2 item(s) in total]"},
            {"type": "image", "status": "Success", "name_tag": "deep/busybox:1.35 [1 item(s) in total]"},
            {"type": "image", "status": "Success", "name_tag": "old:[1,2]"}],
        "failed_artifact": [{"type": "image", "status": "Failed", "name_tag": "broken [1 item(s) in total]"}]}}}"#;
    let expected = [
        "push https://dst.example.org:8443/mirror/alpine",
        "push https://dst.example.org:8443/mirror/deep/busybox:1.35",
        "push https://dst.example.org:8443/mirror/old",
    ];
    assert_eq!(hints(Form::Harbor, replication), expected);

    let retention = format!(
        r#"{{"type": "TAG_RETENTION", "occur_at": 1, "operator": "admin", "event_data": {{"retention": {{
        "total": 3, "retained": 1, "harbor_hostname": "hub.harbor.com", "project_name": "proj", "retention_policy_id": 4,
        "result": "SUCCESS", "deleted_artifact": [
            {{"type": "image", "status": "SUCCESS", "name_tag": "proj/app:1"}},
            {{"type": "image", "status": "SUCCESS", "name_tag": "proj/app@{DIGEST}"}},
            {{"type": "image", "status": "SUCCESS", "name_tag": "proj/base:2"}}]}}}}}}"#
    );
    assert_eq!(
        hints(Form::Harbor, &retention),
        ["delete https://hub.harbor.com/proj/app", "delete https://hub.harbor.com/proj/base"]
    );
}

#[test]
fn harbor_as_cloud_events() {
    let event = |kind: &str| {
        format!(
            r#"{{"specversion": "1.0", "id": "2eedfab8-61d3-4f3c-8ec3-8f82d1ec4c84", "requestid": "4b2f89a6",
            "source": "/projects/2/webhook/policies/15", "type": "{kind}", "datacontenttype": "application/json",
            "time": "2023-04-03T06:26:44Z", "operator": "admin", "data": {{
                "resources": [{{"digest": "{DIGEST}", "tag": "v1.0", "resource_url": "harbor.dev/library/busybox:v1.0"}}],
                "repository": {{"date_created": 1, "name": "busybox", "namespace": "library",
                                "repo_full_name": "library/busybox", "repo_type": "public"}}}}}}"#
        )
    };
    let read = |kind| hints(Form::CloudEvents, &event(kind));
    assert_eq!(read("harbor.artifact.pushed"), ["push https://harbor.dev/library/busybox:v1.0"]);
    assert_eq!(read("harbor.artifact.deleted"), ["delete https://harbor.dev/library/busybox"]);
    assert!(read("harbor.artifact.pulled").is_empty());
    assert!(read("com.example.other").is_empty());
}

/// An event of Docker distribution.
fn event(action: &str, target: &str) -> String {
    format!(
        r#"{{"id": "asdf-asdf-asdf-asdf-0", "timestamp": "2006-01-02T15:04:05Z", "action": "{action}", "target": {target},
        "request": {{"id": "asdfasdf", "addr": "client.local", "host": "registrycluster.local:5000", "method": "PUT",
                     "useragent": "test/0.1"}}, "actor": {{"name": "test-actor"}},
        "source": {{"addr": "hostname.local:port"}}}}"#
    )
}

#[test]
fn distribution_and_gitlab() {
    let manifest = format!(
        r#"{{"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "length": 1, "digest": "{DIGEST}",
        "repository": "library/test", "url": "http://example.com/v2/library/test/manifests/{DIGEST}", "tag": "latest"}}"#
    );
    let blob = format!(
        r#"{{"mediaType": "application/vnd.docker.container.image.rootfs.diff+x-gtar", "length": 2, "digest": "{DIGEST}",
        "repository": "library/test", "url": "http://example.com/v2/library/test/blobs/{DIGEST}"}}"#
    );
    let deleted = format!(r#"{{"digest": "{DIGEST}", "repository": "library/test"}}"#);
    let envelope = |events: &[String]| format!(r#"{{"events": [{}]}}"#, events.join(","));
    let all = [
        event("push", &blob),
        event("push", &manifest),
        event("pull", &manifest),
        event("mount", &blob),
        event("delete", &deleted),
    ];
    let expected = [
        "push https://registrycluster.local:5000/library/test:latest",
        "delete https://registrycluster.local:5000/library/test",
    ];
    assert_eq!(hints(Form::Distribution, &envelope(&all)), expected);
    assert!(hints(Form::Distribution, &envelope(&[])).is_empty());
    let mounted = envelope(&[event("mount", &manifest)]);
    assert_eq!(hints(Form::Distribution, &mounted), expected[..1]);
    // Without the host of the request, that of the URL.
    let hostless = envelope(&[event("push", &manifest).replace("registrycluster.local:5000", "")]);
    assert_eq!(hints(Form::Distribution, &hostless), ["push https://example.com/library/test:latest"]);

    let hook = r#"{"object_kind": "push", "ref": "refs/heads/master", "project": {"name": "x"}}"#;
    assert!(hints(Form::GitLab, hook).is_empty());
    let hook = r#"{"object_kind": "push", "image": "registry.gitlab.example.org/group/app:1"}"#;
    assert_eq!(hints(Form::GitLab, hook), ["push https://registry.gitlab.example.org/group/app:1"]);
}

#[test]
fn quay() {
    let body = r#"{"name": "repository", "repository": "mynamespace/repository", "namespace": "mynamespace",
        "docker_url": "quay.io/mynamespace/repository", "homepage": "https://quay.io/repository/mynamespace/repository",
        "updated_tags": ["latest", "1.0"]}"#;
    let expected =
        ["push https://quay.io/mynamespace/repository:latest", "push https://quay.io/mynamespace/repository:1.0"];
    assert_eq!(hints(Form::Quay, body), expected);
    // A build that failed, say.
    let body = r#"{"docker_url": "quay.io/mynamespace/repository", "build_id": "x", "docker_tags": ["latest"]}"#;
    assert!(hints(Form::Quay, body).is_empty());
}

#[test]
fn our_own_form() {
    for (body, expected) in [
        (r#"{"image": "r.example.org/a:1"}"#, &["push https://r.example.org/a:1"][..]),
        (r#"{"image": "http://r.example.org/a", "action": "push"}"#, &["push http://r.example.org/a"]),
        (r#"{"image": "r.example.org/a:1", "action": "delete", "more": []}"#, &["delete https://r.example.org/a"]),
        (r#"{"image": "r.example.org/a:1", "action": "pull"}"#, &[]),
    ] {
        assert_eq!(hints(Form::Plain, body), expected, "{body}");
    }
    let pinned = format!(r#"{{"image": "r.example.org/a@{DIGEST}"}}"#);
    assert_eq!(hints(Form::Plain, &pinned), [format!("push https://r.example.org/a@{DIGEST}")]);
    let list =
        r#"[{"image": "r/a:1"}, {"image": "r/a:2", "action": "delete"}, {"docker_url": "q/b", "updated_tags": ["3"]}]"#;
    assert_eq!(hints(Form::List, list), ["push https://r/a:1", "delete https://r/a", "push https://q/b:3"]);
    assert!(hints(Form::List, "[]").is_empty());
}

#[test]
fn names_that_are_none() {
    for name in [
        "../../etc",
        "../../etc/passwd:1",
        "r/../../etc:1",
        "r/a/../b:1",
        "/etc/passwd",
        "r/a:../b",
        "r/a:1*",
        "r/.metadata:1",
        "podmanStore/a:1",
        "user:password@r/a:1",
        "r/a:1\\u0000",
        "r/a:1\\n",
        "",
        "r",
        "oci:/etc",
        "file:///etc/passwd",
    ] {
        let body = format!(r#"{{"image": "{name}"}}"#);
        assert_eq!(read(Form::Plain, &body), (Vec::new(), 1), "{name}");
    }
    // Others of the same notification are taken.
    let event = |repository: &str| event("push", &format!(r#"{{"repository": "{repository}", "tag": "1"}}"#));
    let body = format!(r#"{{"events": [{}, {}]}}"#, event("../../etc"), event("good"));
    assert_eq!(read(Form::Distribution, &body), (vec!["push https://registrycluster.local:5000/good:1".to_owned()], 1));
    let resource = r#"{"resource_url": 7}, {"tag": "1"}, "text", {"resource_url": "r/a:1"}"#;
    assert_eq!(read(Form::Harbor, &harbor("PUSH_ARTIFACT", resource)), (vec!["push https://r/a:1".to_owned()], 3));
}

#[test]
fn what_is_no_notification() {
    let deep = "[".repeat(100_000);
    for body in
        ["", "{", "null", "7", "\"x\"", "{}", "[7]", "[[]]", r#"{"image": 7}"#, r#"{"events": {}}"#, "\u{0}", &deep]
    {
        let result = parse(body.as_bytes());
        assert!(matches!(result, Err(Error::Malformed { .. })), "{:?}: {result:?}", &body[..body.len().min(20)]);
    }
    assert!(parse(b"\xff\xfe").is_err());
    // Of the right form, and of no content.
    for body in [
        r#"{"type": "PUSH_ARTIFACT", "event_data": null}"#,
        r#"{"type": 7, "event_data": {"resources": 7}}"#,
        r#"{"specversion": "1.0", "type": "harbor.artifact.pushed"}"#,
        r#"{"events": [null, 7, {}, {"action": "push"}]}"#,
        r#"{"docker_url": null, "updated_tags": [7, null]}"#,
    ] {
        let notification = parse(body.as_bytes()).unwrap();
        assert!(notification.hints.is_empty() && notification.refused.is_empty(), "{body}: {notification:?}");
    }
}
