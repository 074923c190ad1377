//! The page map, in both directions. Eight bytes a page.

/// Stands for "no page".
const NONE: u32 = u32::MAX;

/// Which physical page holds which logical one.
///
/// Invariant: `physical[l] = p` and `logical[p] = l`, or neither names the other. So a physical page is valid
/// exactly when it names a logical one.
#[derive(Debug, Clone)]
pub(crate) struct PageMap {
    physical: Vec<u32>,
    logical: Vec<u32>,
}

impl PageMap {
    pub(crate) fn new(logical_pages: u32, physical_pages: u32) -> Self {
        assert!(logical_pages < NONE && physical_pages < NONE, "the highest number stands for none");
        Self { physical: vec![NONE; logical_pages as usize], logical: vec![NONE; physical_pages as usize] }
    }

    /// The logical page that a physical one holds, if it is valid.
    pub(crate) fn page_at(&self, place: u32) -> Option<u32> {
        let page = self.logical[place as usize];
        (page != NONE).then_some(page)
    }

    /// Puts a logical page into a physical one that holds nothing, and returns the place it had before.
    pub(crate) fn place(&mut self, page: u32, place: u32) -> Option<u32> {
        let old = self.unmap(page);
        debug_assert_eq!(self.logical[place as usize], NONE, "a page is programmed once between erases");
        self.physical[page as usize] = place;
        self.logical[place as usize] = page;
        old
    }

    /// Forgets a logical page, and returns the place it had.
    pub(crate) fn unmap(&mut self, page: u32) -> Option<u32> {
        let place = std::mem::replace(&mut self.physical[page as usize], NONE);
        if place == NONE {
            return None;
        }
        self.logical[place as usize] = NONE;
        Some(place)
    }

    /// Logical pages that are mapped, by a walk over all: for the tests.
    #[cfg(test)]
    pub(crate) fn mapped(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let places = self.physical.iter().enumerate();
        places.filter(|(_, place)| **place != NONE).map(|(page, place)| (page as u32, *place))
    }

    /// Logical pages.
    pub(crate) fn len(&self) -> u32 {
        self.physical.len() as u32
    }
}
