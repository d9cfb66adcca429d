//! The ConfigMap with the policy, watched for as long as the process runs.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tracing::{info, warn};

use super::Publisher;
use super::cache::{Cache, Kept};
use super::config_map::{Name, Receiver};
use crate::api_server::{EachTime, Followed, Observer, Target, follow};

/// Follows a ConfigMap for ever. `kept` is what the cache held at the start.
pub async fn follow_config_map(name: Name, publisher: Publisher, cache: Option<(Cache, Kept)>) {
    let receiver = Receiver::new(name.clone(), publisher.clone(), cache);
    let target = Target {
        kind: "ConfigMap",
        group: "",
        resource: "configmaps",
        namespace: Some(name.namespace.clone()),
        name: Some(name.name.clone()),
    };
    let namespace = name.namespace.clone();
    let observer = Watching { name, publisher, receiver, found: false };
    let followed = Followed { target, labels: String::new(), page: None };
    follow(followed, EachTime, |client| Api::namespaced(client, &namespace), observer).await;
}

struct Watching {
    name: Name,
    publisher: Publisher,
    receiver: Receiver,
    /// The list that is under way has it.
    found: bool,
}

impl Observer<ConfigMap> for Watching {
    fn listing(&mut self) {
        self.found = false;
    }

    fn found(&mut self, object: ConfigMap) {
        self.found = true;
        self.receiver.found(object);
    }

    fn listed(&mut self) {
        if !self.found {
            self.receiver.absent("there is no such ConfigMap");
        }
    }

    fn deleted(&mut self, _: ConfigMap) {
        self.receiver.absent("the ConfigMap was deleted");
    }

    fn connected(&mut self, connected: bool) {
        self.publisher.watch_connected(connected);
        if connected {
            self.publisher.watch_problem(None);
        }
    }

    fn trouble(&mut self, problem: &str) {
        warn!(configmap = %self.name, reason = problem, "The ConfigMap cannot be watched; what is in force stays");
        self.publisher.watch_problem(Some(problem.to_owned()));
    }

    fn recovered(&mut self) {
        info!(configmap = %self.name, "The ConfigMap is watched again");
    }
}
