//! A list of named things that keeps its order and finds, adds and removes by name in logarithmic
//! time. Load balancers hold their frontends, rules and probes in it while they are planned, so
//! that one change among thousands costs as little as one change among few.

use std::collections::BTreeMap;

use crate::resources::{
    BackendAddressPool, FrontendIPConfiguration, LoadBalancingRule, OutboundRule, Probe,
};

/// Something with a name that is unique in its list, whatever its case.
pub trait Named {
    /// The name.
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($name:ident),*) => {
        $(impl Named for $name {
            fn name(&self) -> &str {
                &self.name
            }
        })*
    };
}

named!(BackendAddressPool, FrontendIPConfiguration, LoadBalancingRule, OutboundRule, Probe);

/// The list.
#[derive(Debug, Clone)]
pub struct Ordered<T> {
    items: BTreeMap<u64, T>,
    places: BTreeMap<String, u64>,
    next: u64,
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered { items: BTreeMap::new(), places: BTreeMap::new(), next: 0 }
    }
}

impl<T: Named> Ordered<T> {
    /// Adds at the end. A thing of the same name is taken out first.
    pub fn push(&mut self, item: T) {
        let key = item.name().to_lowercase();
        if let Some(place) = self.places.insert(key, self.next) {
            self.items.remove(&place);
        }
        self.items.insert(self.next, item);
        self.next += 1;
    }

    /// The thing called `name`.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.items.get(self.places.get(&name.to_lowercase())?)
    }

    /// The thing called `name`. Its name must not be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.items.get_mut(self.places.get(&name.to_lowercase())?)
    }

    /// Takes out the thing called `name`.
    pub fn remove(&mut self, name: &str) -> Option<T> {
        self.items.remove(&self.places.remove(&name.to_lowercase())?)
    }

    /// Names of the things whose names start with `prefix`, in the order of the list.
    pub fn starting_with(&self, prefix: &str) -> Vec<String> {
        let prefix = prefix.to_lowercase();
        let mut found: Vec<u64> = self
            .places
            .range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(_, place)| *place)
            .collect();
        found.sort_unstable();
        found
            .iter()
            .filter_map(|place| self.items.get(place))
            .map(|item| item.name().to_owned())
            .collect()
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Everything, in order, as a plain list without a copy.
    pub fn into_vec(self) -> Vec<T> {
        self.items.into_values().collect()
    }

    /// Everything, in order, as a plain list.
    pub fn to_vec(&self) -> Vec<T>
    where
        T: Clone,
    {
        self.iter().cloned().collect()
    }
}

impl<T: Named> FromIterator<T> for Ordered<T> {
    /// Of several things of one name the first is kept.
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut list = Ordered::default();
        for item in items {
            if list.get(item.name()).is_none() {
                list.push(item);
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str) -> Probe {
        Probe { name: name.to_owned(), ..Probe::default() }
    }

    fn names(list: &Ordered<Probe>) -> Vec<&str> {
        list.iter().map(|probe| probe.name.as_str()).collect()
    }

    #[test]
    fn order_is_the_order_of_adding_and_a_thing_put_again_goes_last() {
        let mut list: Ordered<Probe> = ["b", "A", "c"].map(probe).into_iter().collect();
        assert_eq!(names(&list), ["b", "A", "c"]);
        assert!(list.remove("a").is_some());
        list.push(probe("B"));
        assert_eq!(names(&list), ["c", "B"]);
        assert_eq!(list.starting_with("b"), ["B"]);
        assert_eq!(list.len(), 2);
    }
}
