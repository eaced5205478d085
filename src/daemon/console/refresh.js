// Shows the page anew every few seconds, without losing the place; says so when the node does not answer any more.
'use strict';
(() => {
  const main = document.querySelector('#live');
  const stale = document.querySelector('#stale');
  const every = 3000;
  let answered = new Date();
  const look = async () => {
    if (document.hidden) return;
    try {
      const page = new URL(location.href);
      page.searchParams.set('part', 'main');
      const answer = await fetch(page, { cache: 'no-store', signal: AbortSignal.timeout(every) });
      // The session is over: the page leads to where one signs in.
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(answer.status);
      main.innerHTML = await answer.text();
      answered = new Date();
      stale.hidden = true;
    } catch {
      stale.hidden = false;
      stale.querySelector('time').textContent = answered.toLocaleTimeString();
    }
  };
  setInterval(look, every);
  document.addEventListener('visibilitychange', look);
})();
