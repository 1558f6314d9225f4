const tip=document.getElementById('tip');
function show(event){
  const tile=event.target.closest('rect.tile');
  if(!tile){tip.hidden=true;return}
  tip.textContent=tile.dataset.say;tip.hidden=false;
  const box=tile.getBoundingClientRect(),own=tip.getBoundingClientRect();
  const x=event.clientX||box.left+box.width/2,y=event.clientY||box.top+box.height/2;
  tip.style.left=Math.max(4,Math.min(x+14,innerWidth-own.width-4))+'px';
  tip.style.top=(y+18+own.height>innerHeight?Math.max(4,y-own.height-10):y+18)+'px';
}
for(const name of ['pointermove','pointerdown','focusin'])document.addEventListener(name,show);
document.addEventListener('pointerleave',()=>{tip.hidden=true});
const find=document.getElementById('find');
if(find)find.addEventListener('input',()=>{
  const word=find.value.toLowerCase();
  for(const item of document.querySelectorAll('[data-region]'))
    item.hidden=!item.dataset.region.toLowerCase().includes(word);
});
